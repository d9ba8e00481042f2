"""Items' texts -> token ids. Each item is tokenized once; a cache keeps the ids for the next run
and for the other ranks.

The cache lies in ilrec/ under HF_HOME (Hugging Face's own environment variable, by default
~/.cache/huggingface). A file's name is a hash of all texts and of the whole tokenizer, so that a
change of either leads to another file and nothing ever has to be invalidated.
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
from ilrec.interactions.arrow_files import read_ragged, write_ragged
from ilrec.interactions.ragged import Ragged

logger = logging.getLogger(__name__)

CACHE = Path(HF_HOME) / "ilrec"
# Texts that are tokenized in one call. More would need much memory, because the tokenizer's own
# objects are many times larger than the ids.
ITEMS_PER_CALL = 10_000
MEND = "remove the file; the next start makes it again"


def tokenize_items(
    tokenizer: PreTrainedTokenizerBase, text_of: Callable[[int], str], num_items: int
) -> Ragged:
    """The token ids of `text_of(item)` for each item, int32.

    A text that spells a special token is split like any other text.
    """
    path = CACHE / f"title-tokens-{_key(tokenizer, text_of, num_items)}.arrow"
    # A file of this name is complete, because it gets the name when all of it is written.
    if path.exists():
        return read_ragged(path, MEND)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The first rank of a machine makes the file, and the others wait here for it.
        with FileLock(f"{path}.lock"):
            if not path.exists():
                beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                write_ragged(beside, _tokenize(tokenizer, text_of, num_items))
                beside.replace(path)
        return read_ragged(path, MEND)
    except OSError as error:
        logger.warning(
            "%s: not writable (%s), so that items are tokenized at every start. "
            "Set HF_HOME to a directory that is writable",
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
    values = np.concatenate([part.values for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged.from_lengths(values, lengths)


def _texts(text_of: Callable[[int], str], num_items: int) -> Iterator[list[str]]:
    """The items' texts, ITEMS_PER_CALL of them at once."""
    for begin in range(0, num_items, ITEMS_PER_CALL):
        end = min(begin + ITEMS_PER_CALL, num_items)
        yield [text_of(item) for item in range(begin, end)]


def _key(tokenizer: PreTrainedTokenizerBase, text_of: Callable[[int], str], num_items: int) -> str:
    """A hash of all that the ids depend on."""
    return blocks_digest(_hashed_blocks(tokenizer, text_of, num_items))[:32]


def _hashed_blocks(
    tokenizer: PreTrainedTokenizerBase, text_of: Callable[[int], str], num_items: int
) -> Iterator[bytes]:
    """The whole tokenizer, and then the texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = backend.to_str()
    else:
        whole = f"{tokenizer!r}{sorted(tokenizer.get_vocab().items())}"
    yield whole.encode()
    for texts in _texts(text_of, num_items):
        # A zero byte ends each text, so that the same characters cut elsewhere give another hash.
        yield "\0".join([*texts, ""]).encode()
