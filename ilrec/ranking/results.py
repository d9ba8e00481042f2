"""ranking.json: metrics together with the protocol that they were measured under, and the table
people read.

Beside it ranking.npy, the target's rank for each user, for tests between methods (a paired
bootstrap) and for looking closer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ilrec.errors import InputError
from ilrec.files.outputs import check_file, whole_file

CUTOFFS = (1, 5, 10, 20)


def write_ranking(
    path: str | Path, metrics: Mapping[str, float], protocol: Mapping[str, Any], ranks_U: Tensor
) -> None:
    """Both files, in place of older ones, once both are written whole. ranks_U: int64 [users], in
    the data set's order of users.

    Raises InputError where they cannot be written; check_ranking finds out before the work.
    """
    with whole_file(path) as metrics_file, whole_file(_ranks_file(path)) as ranks_file:
        np.save(ranks_file, ranks_U.numpy())
        content = {"metrics": dict(metrics), "protocol": dict(protocol)}
        metrics_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def protocol_of(
    split: str, num_users: int, candidates: str, num_items: int, **more: Any
) -> dict[str, Any]:
    """What a ranking was measured under, for write_ranking: the part that all methods share, and
    then what is particular to one.

    split: valid or test; candidates: all or unseen (ilrec/ranking/candidates.py).
    more: for example num_beams, and the digests of the dataset's numbering.
    """
    return {
        "catalogue": "full ranking",
        "split": split,
        "num_users": num_users,
        "candidates": candidates,
        "num_items": num_items,
        **more,
    }


def check_ranking(path: str | Path) -> None:
    """InputError where write_ranking could not write. Leaves nothing behind."""
    if _ranks_file(path) == Path(path):
        raise InputError(
            f"{path}: this name is for the ranks beside the metrics; expected one such as ranking.json"
        )
    for file in (path, _ranks_file(path)):
        check_file(file)


def _ranks_file(path: str | Path) -> Path:
    return Path(path).with_suffix(".npy")


def format_table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """One line per row name, one column per metric; a metric that a row lacks is a dash."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {_title(column):>8}" for column in columns)]
    for name, metrics in rows.items():
        cells = "".join(f"  {metrics[c]:8.4f}" if c in metrics else f"  {'-':>8}" for c in columns)
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def _title(metric: str) -> str:
    name, _, cutoff = metric.partition("@")
    return {"hit": "Hit", "ndcg": "NDCG"}.get(name, name) + "@" + cutoff
