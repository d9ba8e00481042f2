"""Is one method better than another for users in general? Paired comparisons over the same users.

    first_C = values_per_case(ranks_of_a, "ndcg@10")     # ilrec/ranking/metrics.py
    found = paired_difference(first_C, values_per_case(ranks_of_b, "ndcg@10"), ranks_of_a.users)
    adjusted = holm([found.p, ...])                      # where several are made at once

The cases of one user are not independent of each other, so users are resampled and not cases
(a cluster bootstrap; Davison & Hinkley 1997, section 3.8).

Shapes: C cases, U users, D different users (by the sum of their differences and their number of
cases), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000
# Entries of the counts drawn at a time: 32 MiB.
BLOCK_ENTRIES = 2**22


class Difference(NamedTuple):
    """The mean over cases of first - second. relative: to the mean of the second, NaN if that is 0.
    low and high bound its 95 % interval; p: two-sided, of "the mean is 0"."""

    difference: float
    relative: float
    low: float
    high: float
    p: float


def paired_difference(
    first_C: np.ndarray, second_C: np.ndarray, users_C: np.ndarray | None = None
) -> Difference:
    """Compares what two methods reach in the same cases. users_C: as for paired_bootstrap."""
    difference = float(np.mean(first_C - second_C))
    relative = difference / float(second_C.mean()) if second_C.any() else float("nan")
    return Difference(difference, relative, *paired_bootstrap(first_C - second_C, users_C))


def paired_bootstrap(
    differences_C: np.ndarray,
    users_C: np.ndarray | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(low, high, p) of a mean over cases: its 95 % percentile interval, and the two-sided p value
    of "the mean is 0" (Efron & Tibshirani 1993, chapters 13 and 16).

    differences_C: float [C], one method's value minus the other's for each case.
    users_C: the user of each case; None if each case has a user of its own.
    A resample draws U users with replacement, each with all cases of theirs. p is the share of
    resampled means that are as far from the observed mean as that is from 0. The observed mean is
    counted among them, so that p is never 0.
    """
    if users_C is None:
        users_C = np.arange(len(differences_C))
    _, user_C = np.unique(users_C, return_inverse=True)
    num_cases_U = np.bincount(user_C)
    sums_U = np.bincount(user_C, weights=differences_C)

    # Users with the same sum and as many cases are interchangeable. So a resample only needs to
    # know how often each different user was drawn, which is multinomial; there are far fewer.
    kinds_D2, counts_D = np.unique(
        np.stack([sums_U, num_cases_U], axis=1), axis=0, return_counts=True
    )
    num_users = len(sums_U)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ENTRIES // len(kinds_D2))
    means = []
    for begin in range(0, num_resamples, block):
        size = min(block, num_resamples - begin)
        drawn_RD = generator.multinomial(num_users, counts_D / num_users, size)
        sums_R, cases_R = (drawn_RD @ kinds_D2).T
        means.append(sums_R / cases_R)
    means_R = np.concatenate(means)

    low, high = np.percentile(means_R, [2.5, 97.5])
    observed = float(np.mean(differences_C))
    num_extreme = int((np.abs(means_R - observed) >= abs(observed)).sum())
    return float(low), float(high), (num_extreme + 1) / (num_resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for the number of comparisons (Holm 1979), in the order given.

    The smallest of m values is multiplied by m, the next by m - 1, and so on. An adjusted value is
    at least as large as those of smaller p values, and at most 1. Comparing it with a level bounds
    the chance of even one false finding among all comparisons by that level.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted
