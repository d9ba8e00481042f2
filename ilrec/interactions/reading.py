"""A data directory of any kind -> InteractionDataset: prepared (prepared.py), LC-Rec JSON or
RecBole atomic files.

LC-Rec and RecBole files are read into memory as they are, which is fine for some million
interactions. Larger data, and data in any other format, goes through `ilrec prepare` once.
"""

from __future__ import annotations

from pathlib import Path

from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.lcrec import read_lcrec
from ilrec.interactions.prepared import MANIFEST, read_prepared
from ilrec.interactions.recbole import read_recbole


def read_interactions(directory: str | Path, k_core: int) -> InteractionDataset:
    """Read a data directory.

    k_core: for RecBole files only, because the other kinds hold data that is already filtered.
    Raises InputError if the directory holds none of the kinds or more than one, and for what is
    missing or malformed in it.
    """
    directory = Path(directory)
    prepared = _files(directory, MANIFEST)
    lcrec = _files(directory, "*.inter.json")
    recbole = _files(directory, "*.inter")
    found = [*prepared, *lcrec, *recbole]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none of these"
        raise InputError(
            f"{directory}: expected one of {MANIFEST} (`ilrec prepare`), *.inter.json "
            f"(LC-Rec) and *.inter (RecBole), found {names}; point data at a directory with "
            "exactly one"
        )

    if prepared:
        return read_prepared(directory)
    if lcrec:
        return read_lcrec(lcrec[0])
    return read_recbole(recbole[0], k_core)


def _files(directory: Path, pattern: str) -> list[Path]:
    return sorted(filter(Path.is_file, directory.glob(pattern)))
