"""ranking.json (metrics, and the protocol that they were measured under) and the table for people.

ranking.npy lies beside it: the target's rank for each user, for tests between two methods (a paired
bootstrap) and for a closer look.
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
# The names of metrics as a table shows them.
TITLES = {"hit": "Hit", "ndcg": "NDCG"}


def write_ranking(
    path: str | Path,
    metrics: Mapping[str, float],
    protocol: Mapping[str, Any],
    target_ranks_U: Tensor,
) -> None:
    """Write both files. Older ones are replaced, both or neither.

    target_ranks_U: int64 [users], in the order of the data set's users. Raises InputError if the
    files cannot be written; check_ranking finds that out before the work.
    """
    # Both get their names at the end of the block, so that numbers and ranks always fit together.
    with whole_file(path) as metrics_file, whole_file(_ranks_file(path)) as ranks_file:
        np.save(ranks_file, target_ranks_U.numpy())
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
    """Raises InputError if write_ranking could not write. Leaves nothing behind."""
    if _ranks_file(path) == Path(path):
        raise InputError(
            f"{path}: this name is for the ranks beside the metrics; expected one such as "
            "ranking.json"
        )
    for file in (path, _ranks_file(path)):
        check_file(file)


def _ranks_file(path: str | Path) -> Path:
    return Path(path).with_suffix(".npy")


def format_table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """One line for each row's name, one column for each metric. A missing metric is a dash."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {title_of(column):>8}" for column in columns)]
    for name, metrics in rows.items():
        line = f"{name:<{width}}"
        for column in columns:
            line += f"  {metrics[column]:8.4f}" if column in metrics else f"  {'-':>8}"
        lines.append(line)
    return "\n".join(lines)


def title_of(metric: str) -> str:
    """hit@5 -> Hit@5"""
    name, _, cutoff = metric.partition("@")
    return f"{TITLES.get(name, name)}@{cutoff}"
