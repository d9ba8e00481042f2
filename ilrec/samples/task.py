"""The recommendation task of one data directory: interactions, items as text, samples and trie for
a tokenizer.

Training and ranking both start here, so that both render users and items in the same way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.files.digests import text_digest
from ilrec.files.reading import read_json
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.reading import read_interactions
from ilrec.items.semantic_ids import read_semantic_ids, resolve_collisions, write_semantic_ids
from ilrec.items.trie import ItemTrie
from ilrec.samples.prefixes import SampleBuilder, TrainingSamples
from ilrec.samples.prompts import Prompt, SemanticIdPrompt, TitlePrompt, Wording
from ilrec.samples.windows import TrainingWindows

logger = logging.getLogger(__name__)

# Beside a trained model: the semantic IDs that it was trained with.
ITEM_INDEX = "item_index.json"


@dataclass(frozen=True)
class RecommendationTask:
    """What is recommended to whom, and how it is written."""

    config: DataConfig
    dataset: InteractionDataset
    prompt: Prompt
    semantic_ids: list[tuple[str, ...]] | None

    def sample_builder(self, tokenizer: PreTrainedTokenizerBase) -> SampleBuilder:
        config = self.config
        return SampleBuilder(
            tokenizer,
            self.prompt,
            config.max_length,
            config.max_history_items,
            every_item=config.supervision == "every_item",
        )

    def training_samples(self, builder: SampleBuilder) -> TrainingSamples | TrainingWindows:
        samples: Any = {"last_item": TrainingSamples, "every_item": TrainingWindows}[
            self.config.supervision
        ]
        return samples(self.dataset, builder)

    def identity(self) -> dict[str, Any]:
        """What lies at the settings' paths, by its digest: {"path", "sha256"} of each."""
        ids = text_digest(repr(self.semantic_ids))
        index = self.config.semantic_ids or self.config.data
        return {
            "data": {"path": self.config.data, "sha256": self.dataset.fingerprint},
            "semantic_ids": {"path": index, "sha256": ids},
        }

    def write_item_index(self, path: str | Path) -> None:
        """The semantic IDs that the model was trained with, so that ranking does not depend on the
        data directory's."""
        if self.semantic_ids is not None:
            write_semantic_ids(path, self.dataset.item_ids, self.semantic_ids)

    def check_learned_index(self, path: Path) -> None:
        """`path`: the item_index.json beside the model that training starts from, which says what
        its tokens mean.

        Raises InputError where it gives the same items other semantic IDs. Another catalogue, which
        may use some of the same names, is warned of.
        """
        if self.semantic_ids is None or not path.exists():
            return
        learned = read_json(path)
        if not isinstance(learned, dict):
            raise InputError(
                f"{path}: expected {{item: [token, ...]}}, got {learned!r:.80}; copy it again"
            )
        ids = dict(zip(self.dataset.item_ids, self.semantic_ids, strict=True))
        shared = [item for item in ids if item in learned]
        moved = [item for item in shared if learned[item] != list(ids[item])]
        if not moved:
            return
        fault = (
            f"{path}: item {moved[0]!r} is {learned[moved[0]]} there and {list(ids[moved[0]])} in {self.config.data} "
            f"({len(moved)} of {len(shared)} items differ)"
        )
        if ids.keys() == learned.keys():
            raise InputError(
                f"{fault}: the model has learned other tokens for these items; train with --semantic_ids {path}, or "
                "start from a model that knows none of them"
            )
        logger.warning("%s: taken for another catalogue with some of the same names", fault)


def load_task(config: DataConfig) -> RecommendationTask:
    """Read interactions and items. Raises InputError for what is missing, malformed or
    contradictory in them."""
    dataset = read_interactions(config.data, config.k_core)
    wording = Wording(config.prompt_prefix, config.prompt_separator, config.prompt_suffix)
    if config.item_format == "title":
        if dataset.titles is None:
            raise InputError(
                f"{config.data}: item_format is title, and the data has no titles: expected *.item.json or *.item; "
                "add it, or train with item_format: semantic_id"
            )
        return RecommendationTask(config, dataset, TitlePrompt(dataset.titles, wording), None)
    path = Path(config.semantic_ids) if config.semantic_ids else _index_file(config.data)
    read = read_semantic_ids(path, dataset.item_ids)
    semantic_ids = resolve_collisions(read)
    num_moved = sum(a != b for a, b in zip(read, semantic_ids, strict=True))
    if num_moved:
        logger.warning(
            "%s: %d items share their semantic ID with another; each got one more token",
            path,
            num_moved,
        )
    return RecommendationTask(
        config, dataset, SemanticIdPrompt(semantic_ids, wording), semantic_ids
    )


def _index_file(directory: str) -> Path:
    found = sorted(Path(directory).glob("*.index.json"))
    if len(found) != 1:
        raise InputError(
            f"{directory}: expected one *.index.json with semantic IDs, found {len(found)}; make one with "
            "tools/build_semantic_ids.py, or train with semantic_ids: FILE or with item_format: title"
        )
    return found[0]


def item_trie(builder: SampleBuilder) -> ItemTrie:
    return ItemTrie.from_sequences(builder.response_sequences())
