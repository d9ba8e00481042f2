"""Paired comparisons: differences and Holm's rule by hand, intervals against scipy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from ilrec.ranking.comparison import holm, paired_bootstrap, paired_difference


def test_difference_by_hand():
    found = paired_difference(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0]))
    assert (found.difference, found.relative) == (0.25, 0.5)
    assert (found.low, found.high) == (0.0, 0.75) and found.p > 0.05
    assert np.isnan(paired_difference(np.ones(2), np.zeros(2)).relative)


def test_the_interval_is_that_of_scipy():
    differences_U = np.random.default_rng(1).choice([-1.0, 0.0, 0.5, 1.0], 800)
    low, high, _ = paired_bootstrap(differences_U)
    expected = stats.bootstrap(
        (differences_U,), np.mean, n_resamples=10_000, method="percentile", random_state=2
    ).confidence_interval
    # Both are estimates from 10,000 resamples; the standard error of a percentile is about .0005.
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.003)


def test_bootstrap_is_the_plain_one():
    """Against resampling users one by one, and the normal approximation that both approach."""
    generator = np.random.default_rng(1)
    differences = generator.choice([-1.0, 0.0, 0.0, 0.5, 1.0], 2000)
    low, high, p = paired_bootstrap(differences, num_resamples=4000)
    plain = [generator.choice(differences, len(differences)).mean() for _ in range(2000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.004)
    assert p < 0.001

    # A mean of half its standard error: z = 0.5, two-sided p = 0.617.
    centred = differences - differences.mean()
    half_error = 0.5 * centred.std() / len(centred) ** 0.5
    assert paired_bootstrap(centred + half_error)[2] == pytest.approx(0.617, abs=0.03)
    assert paired_bootstrap(np.zeros(50))[2] == 1.0


def test_p_is_uniform_where_there_is_no_difference():
    """Of 200 comparisons without a difference about 5 % have p < .05; 12 % would be six standard
    deviations off."""
    generator = np.random.default_rng(3)
    small = sum(
        paired_bootstrap(generator.choice([-1.0, 0.0, 1.0], 400), None, 500, seed)[2] < 0.05
        for seed in range(200)
    )
    assert small <= 24


def test_users_are_resampled_with_all_their_cases():
    """Five equal cases a user say no more than one: the interval is that of the users alone. If
    users have different numbers of cases, it is that of resampling them one by one."""
    generator = np.random.default_rng(5)
    of_users = generator.choice([-1.0, 0.0, 0.5, 1.0], 300)
    alone = paired_bootstrap(of_users)
    users = np.repeat(np.arange(300), 5)
    assert paired_bootstrap(of_users[users], users) == pytest.approx(alone)
    apart = paired_bootstrap(of_users[users])
    assert (apart[1] - apart[0]) / (alone[1] - alone[0]) == pytest.approx(5**-0.5, rel=0.05)

    users = np.repeat(np.arange(300), 1 + np.arange(300) % 4)
    differences = of_users[users] + generator.normal(0, 0.1, len(users))
    low, high, _ = paired_bootstrap(differences, users)
    cases_of = [np.flatnonzero(users == user) for user in range(300)]
    plain = []
    for _ in range(2000):
        drawn = np.concatenate([cases_of[user] for user in generator.integers(300, size=300)])
        plain.append(differences[drawn].mean())
    assert (low, high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=0.01)


def test_p_is_small_for_a_clear_difference_and_never_zero():
    _, _, p = paired_bootstrap(np.r_[np.ones(60), np.zeros(40)], num_resamples=999)
    assert p == 1 / 1000


def test_holm_by_hand():
    """.01 x 4, .02 x 3, .03 x 2 = .06 (not below .06), .04 x 1 raised to .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
