"""How certain a table of rankings is: standard errors, and one row against another.

The targets of one user are not independent of each other. So users are counted, not targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ilrec.files.reading import read_json
from ilrec.ranking.comparison import gains_per_user, paired_bootstrap

METRICS = ("hit@10", "ndcg@10")


def gains_of_users(ranking: Path, metric: str) -> np.ndarray:
    """float64 [users]: the metric's mean over the targets of each user. ranking: ranking.json of a
    split by order, where each user has equally many targets."""
    num_users = read_json(ranking)["protocol"]["num_users"]
    ranks_UT = np.load(ranking.with_suffix(".npy")).reshape(num_users, -1)
    return gains_per_user(ranks_UT.ravel(), metric).reshape(ranks_UT.shape).mean(axis=1)


def certainty(rankings: Mapping[str, Path], baseline: str, method: str) -> str:
    """Lines of text: the standard error of each row, and method - baseline with its 95 % interval
    and p value (paired bootstrap)."""
    lines = []
    for metric in METRICS:
        gains = {name: gains_of_users(path, metric) for name, path in rankings.items()}
        errors = []
        for name, gains_U in gains.items():
            errors.append(f"{name} {gains_U.std(ddof=1) / len(gains_U) ** 0.5:.4f}")
        differences_U = gains[method] - gains[baseline]
        low, high, p = paired_bootstrap(differences_U)
        lines += [
            f"{metric}, standard errors: {', '.join(errors)}",
            f"{metric}, {method} - {baseline}: {differences_U.mean():+.4f} "
            f"[{low:+.4f}, {high:+.4f}], p = {p:.4f}",
        ]
    return "\n".join(lines)
