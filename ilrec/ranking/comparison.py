"""Is one method better than another for users in general? Paired comparisons over the same users.

    gains = gains_per_user(ranks_U, "ndcg@10")
    low, high, p = paired_bootstrap(gains_of_a - gains_of_b)
    adjusted = holm([p, ...])          # where several comparisons are made at once

Shapes: U users, D different values, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_RESAMPLES = 10_000
# Entries of the counts drawn at a time: 32 MiB.
BLOCK_ENTRIES = 2**22


def gains_per_user(ranks_U: np.ndarray, metric: str) -> np.ndarray:
    """What each user adds to the mean of hit@K or ndcg@K (ilrec/ranking/metrics.py): float64 [U].

    ranks_U: the rank of each user's target, from 1 on.
    """
    name, _, cutoff = metric.partition("@")
    gains_U = 1 / np.log2(ranks_U + 1.0) if name == "ndcg" else np.ones(len(ranks_U))
    return np.where(ranks_U <= int(cutoff), gains_U, 0.0)


def paired_bootstrap(
    differences_U: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(low, high, p) of a mean over users: its 95 % percentile interval, and the two-sided p value
    of "the mean is 0" (Efron & Tibshirani 1993, chapters 13 and 16).

    differences_U: float [U], one method's gain minus the other's for each user.
    A resample draws U users with replacement. p is the share of resampled means that are as far
    from the observed mean as that is from 0. The observed mean is counted among them, so that p is
    never 0.
    """
    # Users with the same difference are interchangeable. So a resample only needs to know how often
    # each different value was drawn, which is multinomial; there are far fewer values than users.
    values_D, counts_D = np.unique(differences_U, return_counts=True)
    num_users = len(differences_U)
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ENTRIES // len(values_D))
    means = []
    for begin in range(0, num_resamples, block):
        size = min(block, num_resamples - begin)
        drawn_RD = generator.multinomial(num_users, counts_D / num_users, size)
        means.append(drawn_RD @ values_D / num_users)
    means_R = np.concatenate(means)

    low, high = np.percentile(means_R, [2.5, 97.5])
    observed = float(np.mean(differences_U))
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
