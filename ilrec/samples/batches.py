"""Batches by token budget: samples of like length together where they are padded, any mix of
lengths where they are flattened.

The shape of an epoch is planned once, from the sorted lengths: which place in that order goes to
which batch. An epoch then draws, from the seed and its number, which of the samples of one length
takes which place, and the order of the batches. So the budget holds always, every epoch has the
same number of batches, and a resumed run finds its place in the middle of one.

Shapes: S samples, B batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from ilrec.errors import InputError


def is_flattened(layout: str, flash: bool) -> bool:
    """Whether a batch is one row without padding. flash: the attention is flash_attention_2."""
    return layout == "flattened" or (layout == "auto" and flash)


@dataclass(frozen=True)
class EpochPlan:
    """places_S: ranks in the order of length, batch after batch. ends_B: where each batch ends in
    it."""

    places_S: np.ndarray
    ends_B: np.ndarray

    def batches(self, num_tokens_S: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """The samples of each batch, every sample once; batches in random order."""
        by_length_S = np.lexsort((rng.random(len(num_tokens_S)), num_tokens_S))
        batches = np.split(by_length_S[self.places_S], self.ends_B[:-1])
        return [batches[b] for b in rng.permutation(len(batches)).tolist()]


def plan_padded(sorted_S: np.ndarray, max_tokens: int) -> EpochPlan:
    """Neighbours in length together: a batch takes its number of samples times its longest, at most
    `max_tokens`.

    sorted_S: tokens of each sample, ascending.
    """
    ends, begin = [], 0
    while begin < len(sorted_S):
        # The cost of taking the samples up to each place grows with it; at most max_tokens //
        # shortest samples can fit.
        candidates = sorted_S[begin : begin + max_tokens // int(sorted_S[begin])]
        costs = candidates * np.arange(1, len(candidates) + 1)
        begin += int(np.searchsorted(costs, max_tokens, side="right"))
        ends.append(begin)
    return EpochPlan(np.arange(len(sorted_S)), np.array(ends))


def plan_flattened(sorted_S: np.ndarray, max_tokens: int) -> EpochPlan:
    """Lengths dealt out in turn, there and back, so that all batches take about as many tokens, at
    most `max_tokens` together."""
    num_batches = int(-(-int(sorted_S.sum()) // max_tokens))
    while True:
        batch_S = _dealt(len(sorted_S), num_batches)
        largest = np.bincount(batch_S, weights=sorted_S).max()
        if largest <= max_tokens:
            places_S = np.argsort(batch_S, kind="stable")
            return EpochPlan(places_S, np.cumsum(np.bincount(batch_S)))
        num_batches = max(num_batches + 1, int(num_batches * largest / max_tokens))


def _dealt(num_samples: int, num_batches: int) -> np.ndarray:
    """int64 [S]: 0 1 2 2 1 0 0 1 ..., but from the longest sample (the last) backwards, so that
    what is left over is short."""
    there_and_back = np.concatenate([np.arange(num_batches), np.arange(num_batches)[::-1]])
    return np.resize(there_and_back, num_samples)[::-1]


def split_to_multiple(plan: EpochPlan, multiple: int) -> EpochPlan:
    """As many more batches as it takes, each by halving the one with the most samples: no rank
    waits for another's last batch.

    Raises ValueError where there are fewer samples than `multiple`.
    """
    begins, ends = [0, *plan.ends_B[:-1].tolist()], plan.ends_B.tolist()
    while len(ends) % multiple:
        sizes = np.subtract(ends, begins)
        largest = int(np.argmax(sizes))
        if sizes[largest] < 2:
            raise ValueError(
                f"{len(plan.places_S)} samples cannot make batches for {multiple} ranks"
            )
        middle = begins[largest] + int(sizes[largest]) // 2
        begins.insert(largest + 1, middle)
        ends.insert(largest, middle)
    return EpochPlan(plan.places_S, np.array(ends))


class TokenBudgetSampler(Sampler[list[int]]):
    """This rank's batches of an epoch: every `world_size`-th of all, so that all ranks take equally
    many.

    num_tokens_S: int32 [S]. max_tokens: tokens of a batch, padding included. InputError where a
        sample or the data do not fit.
    """

    def __init__(
        self,
        num_tokens_S: np.ndarray,
        max_tokens: int,
        flattened: bool,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        sorted_S = np.sort(num_tokens_S).astype(np.int64)
        if sorted_S[-1] > max_tokens:
            raise InputError(
                f"max_tokens_per_batch: the longest sample has {sorted_S[-1]} tokens, got {max_tokens}; "
                "raise it, or lower max_length"
            )
        plan = (plan_flattened if flattened else plan_padded)(sorted_S, max_tokens)
        try:
            self.plan = split_to_multiple(plan, world_size)
        except ValueError as error:
            raise InputError(f"data: {error}; use fewer ranks") from None
        # Padding makes the samples of a batch as long as its longest; the last of a batch is the
        # longest in a padded plan.
        sizes_B = np.diff(self.plan.ends_B, prepend=0)
        processed = (
            sorted_S.sum() if flattened else (sizes_B * sorted_S[self.plan.ends_B - 1]).sum()
        )
        self.real_token_share = float(sorted_S.sum() / processed)
        self.num_tokens_S, self.seed, self.rank, self.world_size = (
            num_tokens_S,
            seed,
            rank,
            world_size,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan.ends_B) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.plan.batches(
            self.num_tokens_S, np.random.default_rng([self.seed, self.epoch])
        )
        for batch in batches[self.rank :: self.world_size]:
            yield batch.tolist()


class EpochLoader(DataLoader):
    """Hands the epoch's number, which the Trainer gives to the loader, on to the sampler."""

    batch_sampler: Any

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
