"""What a file holds, as a number to compare."""

from __future__ import annotations

import hashlib
from pathlib import Path

# Read at a time: memory does not grow with the file.
BLOCK_BYTES = 2**22


def size_and_digest(path: Path) -> tuple[int, str]:
    """Bytes, and their SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
