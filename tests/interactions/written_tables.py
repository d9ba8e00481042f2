"""Raw files for the tests of their readers, and what is read from them."""

from __future__ import annotations

import gzip
from decimal import Decimal
from pathlib import Path

import numpy as np

from ilrec.interactions.fields import FRACTION_DIGITS
from ilrec.interactions.importers import Columns, RawInteractions, read_files
from ilrec.interactions.findings import Findings

COLUMNS = Columns("u", "i", "t", "i", "title", "r")


def write(path: Path, text: str | bytes) -> Path:
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def found(
    path: Path, columns: Columns = COLUMNS, findings: Findings | None = None, **options
) -> list[tuple]:
    """(user, item, exact time) of each interaction, in the file's order."""
    return rows_of(read_files([path], columns, findings or Findings(), **options))


def rows_of(raw: RawInteractions) -> list[tuple]:
    users, items = list(raw.user_names), list(raw.item_names)
    fractions = raw.times.fractions or np.zeros(len(raw.times.wholes), dtype=int)
    times = [
        whole + Decimal(int(fraction)).scaleb(-FRACTION_DIGITS) if fraction else whole
        for whole, fraction in zip(raw.times.wholes, fractions, strict=True)
    ]
    return [(users[u], items[i], t) for u, i, t in zip(raw.users, raw.items, times, strict=True)]
