"""Items' texts -> token ids, each item once, kept in a cache for the next run and the other ranks.

The cache lies under HF_HOME (Hugging Face's own environment variable; ~/.cache/huggingface where it
is not set), in ilrec/. A file's name is a hash of the texts and of the whole tokenizer: where
either changes, the name does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedTokenizerBase

from ilrec.files.digests import blocks_digest
from ilrec.interactions.prepared import read_ragged, write_ragged
from ilrec.interactions.ragged import Ragged

logger = logging.getLogger(__name__)

CACHE = Path(HF_HOME) / "ilrec"
# Texts held at once: the tokenizer's own objects are many times larger than the ids.
ITEMS_PER_CALL = 10_000


def tokenize_items(
    tokenizer: PreTrainedTokenizerBase, text_of: Callable[[int], str], num_items: int
) -> Ragged:
    """Token ids of `text_of(item)` for each item, int32.

    A text that spells a special token is split like any other text.
    """
    path = CACHE / f"title-tokens-{_key(tokenizer, text_of, num_items)}.arrow"
    if path.exists():
        return read_ragged(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # the other ranks of this machine wait for the first
            if not path.exists():
                beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                write_ragged(beside, _tokenize(tokenizer, text_of, num_items))
                beside.replace(path)
        return read_ragged(path)
    except OSError as error:
        logger.warning(
            "%s: not writable (%s); items are tokenized at every start. Set HF_HOME to a directory that is",
            CACHE,
            error,
        )
        return _tokenize(tokenizer, text_of, num_items)


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, text_of: Callable[[int], str], num_items: int
) -> Ragged:
    parts = []
    for texts in _texts(text_of, num_items):
        encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        parts.append(Ragged.from_rows(encoded["input_ids"]))
    return Ragged.from_lengths(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def _texts(text_of: Callable[[int], str], num_items: int) -> Iterator[list[str]]:
    for begin in range(0, num_items, ITEMS_PER_CALL):
        yield [text_of(item) for item in range(begin, min(begin + ITEMS_PER_CALL, num_items))]


def _key(tokenizer: PreTrainedTokenizerBase, text_of: Callable[[int], str], num_items: int) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = (
        backend.to_str()
        if backend is not None
        else f"{tokenizer!r}{sorted(tokenizer.get_vocab().items())}"
    )

    def blocks() -> Iterator[bytes]:
        yield whole.encode()
        for texts in _texts(text_of, num_items):
            yield "\0".join([*texts, ""]).encode()

    return blocks_digest(blocks())[:32]
