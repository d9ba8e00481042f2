"""Batches by token budget: samples of like length together if they are padded, any mix of lengths
if they are flattened.

The shape of an epoch is planned once, from the sorted lengths: which places in that order make
which batch. Each epoch then draws, from the seed and its number, which of the samples of one length
takes which place, and the order of the batches. So the budget always holds, every epoch has the
same number of batches, and a resumed run finds its place in the middle of an epoch.

Shapes: S samples, B batches.
"""

from __future__ import annotations

import math
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
    """The shape of every epoch.

    places_S: places in the order of lengths, batch after batch. ends_B: where each batch ends in
    places_S.
    """

    places_S: np.ndarray
    ends_B: np.ndarray

    def batches(self, num_tokens_S: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """The samples of each batch of one epoch, each sample once, batches in random order."""
        # The random second key mixes the samples of one length.
        by_length_S = np.lexsort((rng.random(len(num_tokens_S)), num_tokens_S))
        batches = np.split(by_length_S[self.places_S], self.ends_B[:-1])
        return [batches[batch] for batch in rng.permutation(len(batches)).tolist()]


def plan_padded(sorted_S: np.ndarray, max_tokens: int) -> EpochPlan:
    """Neighbours in length make a batch. It costs its number of samples times its longest one, at
    most `max_tokens`.

    sorted_S: tokens of each sample, ascending.
    """
    ends = []
    begin = 0
    while begin < len(sorted_S):
        # A batch that begins here has at most max_tokens // shortest samples. Its cost grows with
        # each sample, so that a search finds the last one that fits.
        most_samples = max_tokens // int(sorted_S[begin])
        candidates = sorted_S[begin : begin + most_samples]
        costs = candidates * np.arange(1, len(candidates) + 1)
        begin += int(np.searchsorted(costs, max_tokens, side="right"))
        ends.append(begin)
    return EpochPlan(np.arange(len(sorted_S)), np.array(ends))


def plan_flattened(sorted_S: np.ndarray, max_tokens: int) -> EpochPlan:
    """Samples are dealt out in turn, so that all batches have about as many tokens, at most
    `max_tokens`.

    sorted_S: tokens of each sample, ascending.
    """
    num_batches = math.ceil(int(sorted_S.sum()) / max_tokens)
    while True:
        batch_S = _dealt(len(sorted_S), num_batches)
        largest = np.bincount(batch_S, weights=sorted_S).max()
        if largest <= max_tokens:
            places_S = np.argsort(batch_S, kind="stable")
            return EpochPlan(places_S, np.cumsum(np.bincount(batch_S)))
        # Too few batches. The overshoot says about how many it will take.
        num_batches = max(num_batches + 1, int(num_batches * largest / max_tokens))


def _dealt(num_samples: int, num_batches: int) -> np.ndarray:
    """int64 [S]: the batch of each sample, 0 1 2 2 1 0 0 1 ... as cards are dealt there and back.

    Dealing begins with the longest sample, the last one, so that what is left over is short.
    """
    there_and_back = np.concatenate([np.arange(num_batches), np.arange(num_batches)[::-1]])
    return np.resize(there_and_back, num_samples)[::-1]


def split_to_multiple(plan: EpochPlan, multiple: int) -> EpochPlan:
    """The plan with a number of batches that `multiple` divides, so that each rank has equally
    many.

    Each further batch is made by halving the one with the most samples: nothing is repeated and
    nothing dropped. Raises ValueError if there are too few samples for that, as for 7 batches of 8
    samples and 3 ranks: 9 batches would be needed.
    """
    begins = [0, *plan.ends_B[:-1].tolist()]
    ends = plan.ends_B.tolist()
    while len(ends) % multiple:
        sizes = np.subtract(ends, begins)
        largest = int(np.argmax(sizes))
        if sizes[largest] < 2:
            num_samples = len(plan.places_S)
            raise ValueError(
                f"{num_samples} samples cannot make equally many batches for {multiple} ranks"
            )
        middle = begins[largest] + int(sizes[largest]) // 2
        begins.insert(largest + 1, middle)
        ends.insert(largest, middle)
    return EpochPlan(plan.places_S, np.array(ends))


class TokenBudgetSampler(Sampler[list[int]]):
    """This rank's batches of an epoch: every `world_size`-th of all batches.

    num_tokens_S: int32 [S]. max_tokens: most tokens of a batch, padding included. Raises InputError
    if a sample is longer than that, or there are too few samples for this number of ranks.
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
        self.num_tokens_S = num_tokens_S
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

        sorted_S = np.sort(num_tokens_S).astype(np.int64)
        if sorted_S[-1] > max_tokens:
            raise InputError(
                f"max_tokens_per_batch: the longest sample has {sorted_S[-1]} tokens, "
                f"got {max_tokens}; raise it, or lower max_length"
            )
        make_plan = plan_flattened if flattened else plan_padded
        try:
            self.plan = split_to_multiple(make_plan(sorted_S, max_tokens), world_size)
        except ValueError as error:
            raise InputError(f"data: {error}; use fewer ranks") from None
        self.real_token_share = _real_token_share(self.plan, sorted_S, flattened)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan.ends_B) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        # Every rank draws the same batches and takes its own of them.
        rng = np.random.default_rng([self.seed, self.epoch])
        batches = self.plan.batches(self.num_tokens_S, rng)
        for batch in batches[self.rank :: self.world_size]:
            yield batch.tolist()


def _real_token_share(plan: EpochPlan, sorted_S: np.ndarray, flattened: bool) -> float:
    """The share of the tokens of all batches that are no padding."""
    if flattened:
        return 1.0
    # Padding makes the samples of a batch as long as its longest, which a padded plan has last.
    sizes_B = np.diff(plan.ends_B, prepend=0)
    longest_B = sorted_S[plan.ends_B - 1]
    return float(sorted_S.sum() / (sizes_B * longest_B).sum())


class EpochLoader(DataLoader):
    """A loader that passes the epoch's number, which the Trainer sets, on to its sampler."""

    batch_sampler: Any

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
