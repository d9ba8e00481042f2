"""SHA-256 of files, texts and blocks of bytes. The one place in the project that computes it.

Prepared data, caches, checkpoints and merged models record these values and compare them later. So
no function here may ever return another value for the same input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

# A file is read in blocks of this size, so that memory does not grow with the file.
BLOCK_BYTES = 2**22


def blocks_digest(blocks: Iterable[bytes]) -> str:
    """SHA-256 (64 hexadecimal digits) of the blocks, as if they were one text."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """SHA-256 of the text in UTF-8."""
    return blocks_digest([text.encode()])


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    return blocks_digest(_blocks_of(path))


def size_and_digest(path: str | Path) -> tuple[int, str]:
    """A file's size in bytes and its SHA-256, in one reading."""
    digest = hashlib.sha256()
    size = 0
    for block in _blocks_of(path):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def fingerprint_of(paths: Iterable[Path], *parts: object) -> str:
    """SHA-256 of the further parts (settings, by their repr) and then the bytes of all files."""

    # The parts come first, without a mark between them and the files: recorded values depend on it.
    def blocks() -> Iterator[bytes]:
        yield repr(parts).encode()
        for path in paths:
            yield from _blocks_of(path)

    return blocks_digest(blocks())


def _blocks_of(path: str | Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
