"""Token budgets: every sample once, never over budget, the same number of batches each epoch and
for each rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec.errors import InputError
from ilrec.samples.batches import TokenBudgetSampler, plan_flattened, plan_padded


def sampler(
    num_tokens, max_tokens: int, flattened: bool, rank: int = 0, world_size: int = 1, seed: int = 0
) -> TokenBudgetSampler:
    return TokenBudgetSampler(
        np.array(num_tokens, dtype=np.int32), max_tokens, flattened, seed, rank, world_size
    )


def test_padded_by_hand():
    """Lengths 2 2 3 5 9 under 10: three of at most 3 are 9 tokens; 5 beside 9 would be 18."""
    plan = plan_padded(np.array([2, 2, 3, 5, 9]), 10)
    assert plan.ends_B.tolist() == [3, 4, 5] and plan.places_S.tolist() == [0, 1, 2, 3, 4]


def test_flattened_by_hand():
    """21 tokens under 11. Dealt from the longest to two batches: 9 2 2 and 5 3, of which one has
    13; to three: 9, 5 2 and 3 2."""
    plan = plan_flattened(np.array([2, 2, 3, 5, 9]), 11)
    batches = np.split(plan.places_S, plan.ends_B[:-1])
    assert sorted(sorted(np.array([2, 2, 3, 5, 9])[batch].tolist()) for batch in batches) == [
        [2, 3],
        [2, 5],
        [9],
    ]


@given(
    st.lists(st.integers(1, 50), min_size=8, max_size=200),
    st.integers(50, 300),
    st.booleans(),
    st.integers(1, 4),
)
@settings(deadline=None, derandomize=True, database=None)
def test_every_sample_once_within_the_budget_for_every_rank(
    num_tokens, max_tokens, flattened, world_size
):
    ranks = [
        sampler(num_tokens, max_tokens, flattened, rank, world_size) for rank in range(world_size)
    ]
    for epoch in range(3):
        for one in ranks:
            one.set_epoch(epoch)
        batches = [list(one) for one in ranks]
        assert {len(mine) for mine in batches} == {len(ranks[0])}
        assert sorted(sample for mine in batches for batch in mine for sample in batch) == list(
            range(len(num_tokens))
        )
        for batch in (batch for mine in batches for batch in mine):
            lengths = [num_tokens[sample] for sample in batch]
            assert (sum(lengths) if flattened else len(lengths) * max(lengths)) <= max_tokens


def test_order_follows_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(5, 20, size=100)
    first, again, other_seed = (sampler(lengths, 60, False, seed=seed) for seed in (0, 0, 1))
    assert list(first) == list(again) == list(first) != list(other_seed)
    again.set_epoch(1)
    assert list(again) != list(first)
    mixed = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in again}
    assert len(mixed) < len(first) / 2  # not only the order of batches changes


@pytest.mark.parametrize("flattened", [False, True])
def test_real_token_share_is_what_the_batches_hold(flattened: bool):
    lengths = np.random.default_rng(0).integers(5, 40, size=500)
    one = sampler(lengths, 256, flattened)
    processed = sum(
        sum(lengths[batch]) if flattened else len(batch) * max(lengths[batch]) for batch in one
    )
    assert one.real_token_share == pytest.approx(lengths.sum() / processed)
    assert one.real_token_share > 0.95


def test_refusals():
    with pytest.raises(
        InputError, match="max_tokens_per_batch: the longest sample has 60 tokens, got 50"
    ):
        sampler([10, 60], 50, False)
    with pytest.raises(
        InputError, match="3 samples cannot make batches for 4 ranks; use fewer ranks"
    ):
        sampler([10, 10, 10], 50, True, world_size=4)
