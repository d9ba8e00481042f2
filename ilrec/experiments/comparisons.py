"""Paired comparisons of an experiment's rows over users.

Shapes: U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ilrec.errors import InputError
from ilrec.experiments.grid import Grid
from ilrec.experiments.results import Result
from ilrec.ranking.comparison import holm, paired_difference
from ilrec.ranking.metrics import TargetRanks, values_per_case

COMPARED = ("ndcg@10", "hit@10")
# Fields of a ranking's protocol: whose ranks these are, and among which items.
PAIRED_BY = ("users_sha256", "items_sha256")


class Comparison(NamedTuple):
    """first - second in one metric. low and high bound the 95 % interval of the difference.

    p_holm: p, adjusted for all comparisons in this metric that the report makes.
    """

    first: str
    second: str
    metric: str
    num_seeds: tuple[int, int]
    difference: float
    relative: float
    low: float
    high: float
    p: float
    p_holm: float


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
    pairs = []
    for names in grid.compare:
        if not all(name in results for name in names):
            continue
        # A deterministic row has one run, which stands for any seed.
        any_fits = any(grid.rows[name].is_deterministic for name in names)
        first, second = seeds_to_compare(results[names[0]], results[names[1]], any_fits)
        require_same_numbering([*first, *second])
        pairs.append((names, first, second))

    of_metrics = []
    for metric in COMPARED:
        found = [compare_runs(*pair, metric) for pair in pairs]
        adjusted = holm([comparison.p for comparison in found])
        of_metrics.append([c._replace(p_holm=p) for c, p in zip(found, adjusted, strict=True)])
    # In the table the metrics of one pair stand together.
    return [comparison for pair in zip(*of_metrics, strict=True) for comparison in pair]


def compare_runs(
    names: tuple[str, str], first: Sequence[Result], second: Sequence[Result], metric: str
) -> Comparison:
    """One comparison on its own; its p is not adjusted yet."""
    found = paired_difference(mean_over_seeds(first, metric), mean_over_seeds(second, metric))
    num_seeds = (len(first), len(second))
    return Comparison(*names, metric, num_seeds, *found, found.p)


def mean_over_seeds(results: Sequence[Result], metric: str) -> np.ndarray:
    """Each user's value of the metric: float64 [U]."""
    values = [values_per_case(TargetRanks.one_each(result.ranks_U), metric) for result in results]
    return np.mean(values, axis=0)
