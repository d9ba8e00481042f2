"""Small raw files for the tests of their readers, and what is read from them."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import numpy as np

from ilrec.interactions.fields import FRACTION_DIGITS
from ilrec.interactions.findings import Findings
from ilrec.interactions.importers import Columns, RawInteractions, read_files

COLUMNS = Columns("u", "i", "t", "i", "title", "r")
INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def write(path: Path, text: str | bytes) -> Path:
    """Write a file, compressed if its name ends in .gz."""
    content = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_inter(
    directory: Path, rows: list[tuple[str, str, object]], header: str = INTER_HEADER
) -> Path:
    """RecBole's tiny.inter of (user, item, time), all rated 5."""
    lines = [f"{user}\t{item}\t5\t{time}\n" for user, item, time in rows]
    path = directory / "tiny.inter"
    path.write_text(header + "".join(lines), encoding="utf-8")
    return path


def found(
    path: Path, columns: Columns = COLUMNS, findings: Findings | None = None, **options
) -> list[tuple]:
    """(user, item, exact time) of each interaction that is read, in the file's order."""
    return rows_of(read_files([path], columns, findings or Findings(), **options))


def rows_of(raw: RawInteractions) -> list[tuple]:
    users, items = list(raw.user_names), list(raw.item_names)
    fractions = raw.times.fractions or np.zeros(len(raw.times.wholes), dtype=int)
    rows = []
    for place, whole in enumerate(raw.times.wholes):
        fraction = Decimal(int(fractions[place])).scaleb(-FRACTION_DIGITS)
        time = whole + fraction if fraction else whole
        rows.append((users[raw.users[place]], items[raw.items[place]], time))
    return rows
