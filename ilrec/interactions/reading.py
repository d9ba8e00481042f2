"""A data directory of any kind -> InteractionDataset: prepared (prepared.py), LC-Rec JSON or
RecBole atomic files.

LC-Rec and RecBole files are read into memory as they are, which is fine for some million
interactions. Larger data, and data in any other format, goes through `ilrec prepare` once.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.lcrec import read_lcrec
from ilrec.interactions.prepared import MANIFEST, read_prepared
from ilrec.interactions.recbole import read_recbole
from ilrec.interactions.splits import LEAVE_ONE_OUT, SplitRule

logger = logging.getLogger(__name__)


def read_data(config: DataConfig) -> InteractionDataset:
    """The data that the settings name, split as they say. Raises InputError as
    read_interactions."""
    rule = SplitRule(config.num_targets, config.split_time)
    return read_interactions(config.data, config.k_core, rule)


def read_interactions(
    directory: str | Path, k_core: int, rule: SplitRule = LEAVE_ONE_OUT
) -> InteractionDataset:
    """Read a data directory and split it.

    k_core: for RecBole files only, because the other kinds hold data that is already filtered.
    Raises InputError if the directory holds none of the kinds or more than one, for what is
    missing or malformed in it, and if the rule cannot split it.
    """
    dataset = dataclasses.replace(_read(Path(directory), k_core), rule=rule)
    try:
        report = dataset.splits.report
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None
    if report:
        logger.warning("%s: %s", directory, report)
    return dataset


def _read(directory: Path, k_core: int) -> InteractionDataset:
    """The data of whichever kind the directory holds."""
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
