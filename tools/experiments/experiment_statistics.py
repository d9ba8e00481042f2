"""Paired comparisons of an experiment's rows over users.

    from experiment_statistics import compare      # for its siblings; not a program

Shapes: U users, D different values, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from experiment_grid import Grid
from experiment_results import Result

from ilrec.errors import InputError

COMPARED = ("ndcg@10", "hit@10")
NUM_RESAMPLES = 10_000
# Fields of a ranking's protocol: whose ranks these are, and among which items.
PAIRED_BY = ("users_sha256", "items_sha256")
# Entries of the counts drawn at a time: 32 MiB.
BLOCK_ENTRIES = 2**22


class Comparison(NamedTuple):
    """first - second in one metric. low and high bound the 95 % interval of the difference."""

    first: str
    second: str
    metric: str
    num_seeds: tuple[int, int]
    difference: float
    relative: float
    low: float
    high: float
    p: float


def per_user(ranks_U: np.ndarray, metric: str) -> np.ndarray:
    """What each user adds to hit@K or ndcg@K (ilrec/ranking/metrics.py): float64 [U]."""
    name, _, cutoff = metric.partition("@")
    gains_U = 1 / np.log2(ranks_U + 1.0) if name == "ndcg" else np.ones(len(ranks_U))
    return np.where(ranks_U <= int(cutoff), gains_U, 0.0)


def paired_bootstrap(
    differences_U: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(low, high, p) of a mean over users: its 95 % percentile interval, and the two-sided p value
    of "the mean is 0".

    p is the share of resampled means that are as far from the observed mean as that one is from 0;
    the observed mean counts as one of them.
    """
    # A resample draws U users with replacement. Only how often each value was drawn matters, which
    # is multinomial over the values, and there are far fewer values than users.
    values_D, counts_D = np.unique(differences_U, return_counts=True)
    num_users = len(differences_U)
    observed = float(np.mean(differences_U))
    generator = np.random.default_rng(seed)
    # In blocks, so that the counts [block, D] take little memory.
    block = max(1, BLOCK_ENTRIES // len(values_D))
    means = []
    for begin in range(0, num_resamples, block):
        size = min(block, num_resamples - begin)
        drawn = generator.multinomial(num_users, counts_D / num_users, size)
        means.append(drawn @ values_D / num_users)
    means_R = np.concatenate(means)

    low, high = np.percentile(means_R, [2.5, 97.5])
    num_extreme = int((np.abs(means_R - observed) >= abs(observed)).sum())
    return float(low), float(high), (num_extreme + 1) / (num_resamples + 1)


def seeds_to_compare(
    first: Sequence[Result], second: Sequence[Result], any_fits: bool
) -> tuple[list[Result], list[Result]]:
    """The seeds that both rows have, so that a row is compared with what it started from. All seeds
    if none is shared, and if any fits."""
    shared = {result.seed for result in first} & {result.seed for result in second}
    if any_fits or not shared:
        return list(first), list(second)
    return [r for r in first if r.seed in shared], [r for r in second if r.seed in shared]


def require_same_numbering(results: Sequence[Result]) -> None:
    """Ranks are paired by place. Raises InputError if two rankings are not of the same users and
    items in the same order."""
    expected = [results[0].protocol.get(name) for name in PAIRED_BY]
    for result in results:
        found = [result.protocol.get(name) for name in PAIRED_BY]
        if None in found:
            fault = "does not say of which users its ranks are (an older version wrote it)"
        elif found != expected:
            first = results[0].place
            fault = f"is of other users or items than {first}, or of them in another order"
        else:
            continue
        raise InputError(
            f"{result.place}: {fault}; remove it and give the same command again, "
            "which repeats the ranking alone"
        )


def compare(grid: Grid, results: Mapping[str, Sequence[Result]]) -> list[Comparison]:
    """Every pair of the grid whose rows are both there: a user's metric is averaged over the seeds,
    then users are bootstrapped."""
    found = []
    for names in grid.compare:
        if not all(name in results for name in names):
            continue
        # A deterministic row has one run, which stands for any seed.
        any_fits = any(grid.rows[name].is_deterministic for name in names)
        first, second = seeds_to_compare(results[names[0]], results[names[1]], any_fits)
        require_same_numbering([*first, *second])
        for metric in COMPARED:
            found.append(compare_runs(names, first, second, metric))
    return found


def compare_runs(
    names: tuple[str, str], first: Sequence[Result], second: Sequence[Result], metric: str
) -> Comparison:
    first_U = np.mean([per_user(result.ranks_U, metric) for result in first], axis=0)
    second_U = np.mean([per_user(result.ranks_U, metric) for result in second], axis=0)
    difference = float(np.mean(first_U - second_U))
    relative = difference / second_U.mean() if second_U.any() else float("nan")
    low, high, p = paired_bootstrap(first_U - second_U)
    num_seeds = (len(first), len(second))
    return Comparison(*names, metric, num_seeds, difference, relative, low, high, p)
