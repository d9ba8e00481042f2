"""Token budgets: every sample once, never over budget, the same number of batches in each epoch and
on each rank."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ilrec.errors import InputError
from ilrec.samples.batches import TokenBudgetSampler, plan_flattened, plan_padded


def sampler(
    num_tokens, max_tokens: int, flattened: bool, rank: int = 0, world_size: int = 1, seed: int = 0
) -> TokenBudgetSampler:
    lengths = np.array(num_tokens, dtype=np.int32)
    return TokenBudgetSampler(lengths, max_tokens, flattened, seed, rank, world_size)


def cost(lengths: list[int], flattened: bool) -> int:
    """The tokens that a batch of these lengths takes."""
    return sum(lengths) if flattened else len(lengths) * max(lengths)


def test_padded_by_hand():
    """Lengths 2 2 3 5 9 under 10: three samples of at most 3 take 9 tokens; 5 beside 9 would take
    18."""
    plan = plan_padded(np.array([2, 2, 3, 5, 9]), 10)
    assert plan.ends_B.tolist() == [3, 4, 5]
    assert plan.places_S.tolist() == [0, 1, 2, 3, 4]


def test_flattened_by_hand():
    """21 tokens under 11. Dealt from the longest to two batches: 9 2 2, which are 13 tokens, and 5
    3. Dealt to three: 9, 5 2 and 3 2."""
    lengths = np.array([2, 2, 3, 5, 9])
    plan = plan_flattened(lengths, 11)
    batches = np.split(plan.places_S, plan.ends_B[:-1])
    dealt = sorted(sorted(lengths[batch].tolist()) for batch in batches)
    assert dealt == [[2, 3], [2, 5], [9]]


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
    # Equally many batches for each rank are impossible if they would be more than the samples.
    num_batches = len(sampler(num_tokens, max_tokens, flattened))
    if math.ceil(num_batches / world_size) * world_size > len(num_tokens):
        with pytest.raises(InputError, match="samples cannot make equally many batches"):
            sampler(num_tokens, max_tokens, flattened, 0, world_size)
        return

    ranks = []
    for rank in range(world_size):
        ranks.append(sampler(num_tokens, max_tokens, flattened, rank, world_size))
    for epoch in range(3):
        for one in ranks:
            one.set_epoch(epoch)
        batches_of_ranks = [list(one) for one in ranks]
        assert {len(batches) for batches in batches_of_ranks} == {len(ranks[0])}

        all_batches = list(itertools.chain.from_iterable(batches_of_ranks))
        samples = sorted(itertools.chain.from_iterable(all_batches))
        assert samples == list(range(len(num_tokens)))
        for batch in all_batches:
            assert cost([num_tokens[sample] for sample in batch], flattened) <= max_tokens


def test_order_follows_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(5, 20, size=100)
    first, again = sampler(lengths, 60, False, seed=0), sampler(lengths, 60, False, seed=0)
    other_seed = sampler(lengths, 60, False, seed=1)
    assert list(first) == list(again) == list(first)
    assert list(first) != list(other_seed)

    again.set_epoch(1)
    assert list(again) != list(first)
    # Not only the order of the batches changes, but also what is in them.
    common = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in again}
    assert len(common) < len(first) / 2


@pytest.mark.parametrize("flattened", [False, True])
def test_real_token_share_is_what_the_batches_hold(flattened: bool):
    lengths = np.random.default_rng(0).integers(5, 40, size=500)
    one = sampler(lengths, 256, flattened)
    processed = sum(cost(lengths[batch].tolist(), flattened) for batch in one)
    assert one.real_token_share == pytest.approx(lengths.sum() / processed)
    assert one.real_token_share > 0.95


def test_a_sample_that_is_too_long_is_refused():
    message = "max_tokens_per_batch: the longest sample has 60 tokens, got 50"
    with pytest.raises(InputError, match=message):
        sampler([10, 60], 50, False)


@pytest.mark.parametrize(
    ("num_tokens", "flattened", "world_size"),
    [([10, 10, 10], True, 4), ([1, 1, 17, 26, 26, 26, 26, 26], False, 3)],
)
def test_too_few_samples_for_the_ranks_are_refused(num_tokens, flattened, world_size):
    """Fewer samples than ranks; and 8 samples that take 7 batches, where three ranks need 9."""
    message = f"samples cannot make equally many batches for {world_size} ranks; use fewer ranks"
    with pytest.raises(InputError, match=f"data: {len(num_tokens)} {message}"):
        sampler(num_tokens, 50, flattened, world_size=world_size)
