"""ranking.json: metrics together with the protocol that they were measured under, and the table people read.

Beside it ranking.npy, the target's rank for each user, for tests between methods (a paired bootstrap) and for looking closer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

CUTOFFS = (1, 5, 10, 20)


def write_ranking(path: str | Path, metrics: Mapping[str, float], protocol: Mapping[str, Any], ranks_U: Tensor) -> None:
    """Both files beside and renamed, metrics last. ranks_U: int64 [users], in the data set's order of users."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.tmp.npy")
    np.save(beside, ranks_U.numpy())
    os.replace(beside, path.with_suffix(".npy"))
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps({"metrics": dict(metrics), "protocol": dict(protocol)}, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


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
