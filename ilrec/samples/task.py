"""The recommendation task of one data directory: interactions, items as text, and for a tokenizer
the samples and the trie.

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
from ilrec.interactions.reading import read_data
from ilrec.items.semantic_ids import (
    SemanticId,
    read_semantic_ids,
    resolve_collisions,
    write_semantic_ids,
)
from ilrec.items.trie import ItemTrie
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prefixes import TrainingSamples
from ilrec.samples.prompts import Prompt, SemanticIdPrompt, TitlePrompt, Wording
from ilrec.samples.windows import TrainingWindows

logger = logging.getLogger(__name__)

# The file beside a trained model with the semantic IDs that it was trained with.
ITEM_INDEX = "item_index.json"


@dataclass(frozen=True)
class RecommendationTask:
    """What is recommended to whom, and how it is written."""

    config: DataConfig
    dataset: InteractionDataset
    prompt: Prompt
    semantic_ids: list[SemanticId] | None

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
        if self.config.supervision == "every_item":
            return TrainingWindows(self.dataset, builder)
        return TrainingSamples(self.dataset, builder)

    def identity(self) -> dict[str, Any]:
        """The digests of what was read from the paths in the settings: {"path", "sha256"} of
        each."""
        ids = text_digest(repr(self.semantic_ids))
        index = self.config.semantic_ids or self.config.data
        return {
            "data": {"path": self.config.data, "sha256": self.dataset.fingerprint},
            "semantic_ids": {"path": index, "sha256": ids},
        }

    def write_item_index(self, path: str | Path) -> None:
        """Write the semantic IDs beside the model, so that ranking does not depend on the data
        directory's index. Writes nothing if items are titles."""
        if self.semantic_ids is not None:
            write_semantic_ids(path, self.dataset.item_ids, self.semantic_ids)

    def check_learned_index(self, path: Path) -> None:
        """Compare with the item index of the model that training starts from, which says what the
        model's item tokens mean.

        path: that model's item_index.json; nothing is compared if it is not there. Raises
        InputError if the same items have other semantic IDs in it. Another catalogue, which may
        share some names with this one, only causes a warning.
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
        first = moved[0]
        fault = (
            f"{path}: item {first!r} is {learned[first]} there and {list(ids[first])} in "
            f"{self.config.data} ({len(moved)} of {len(shared)} items differ)"
        )
        # With the same catalogue there is no doubt that the tokens mean something else now.
        if ids.keys() == learned.keys():
            raise InputError(
                f"{fault}: the model has learned other tokens for these items; train with "
                f"--semantic_ids {path}, or start from a model that knows none of them"
            )
        logger.warning("%s: taken for another catalogue with some of the same names", fault)


def load_task(config: DataConfig) -> RecommendationTask:
    """Read interactions and items. Raises InputError for what is missing, malformed or
    contradictory in them."""
    return make_task(config, read_data(config))


def make_task(config: DataConfig, dataset: InteractionDataset) -> RecommendationTask:
    """The task of a dataset that has been read. Raises InputError for what is missing, malformed or
    contradictory in its items."""
    wording = Wording(config.prompt_prefix, config.prompt_separator, config.prompt_suffix)
    if config.item_format == "title":
        if dataset.titles is None:
            raise InputError(
                f"{config.data}: item_format is title, and the data has no titles: expected "
                "*.item.json or *.item; add it, or train with item_format: semantic_id"
            )
        return RecommendationTask(config, dataset, TitlePrompt(dataset.titles, wording), None)

    # The index beside the data is the default. Ranking names the one beside the model.
    path = Path(config.semantic_ids) if config.semantic_ids else _index_file(config.data)
    as_read = read_semantic_ids(path, dataset.item_ids)
    semantic_ids = resolve_collisions(as_read)
    num_changed = sum(old != new for old, new in zip(as_read, semantic_ids, strict=True))
    if num_changed:
        logger.warning(
            "%s: %d items share their semantic ID with another; each got one more token",
            path,
            num_changed,
        )
    prompt = SemanticIdPrompt(semantic_ids, wording)
    return RecommendationTask(config, dataset, prompt, semantic_ids)


def _index_file(directory: str) -> Path:
    found = sorted(Path(directory).glob("*.index.json"))
    if len(found) != 1:
        raise InputError(
            f"{directory}: expected one *.index.json with semantic IDs, found {len(found)}; make "
            "one with `ilrec ids`, or train with semantic_ids: FILE or with "
            "item_format: title"
        )
    return found[0]


def item_trie(builder: SampleBuilder) -> ItemTrie:
    """The trie of all items' responses."""
    return ItemTrie.from_sequences(builder.response_sequences())
