"""Negatives drawn at random (`negatives_from: random`), for ablations: as many as the readout
proposes for each label.

All randomness of a call is drawn once, before the rows are cut into slabs. So every backend and
every slab size takes the same tokens from the same state of torch's generator.

Shape letters: N rows, V vocabulary, U tokens that are not a row's label (V - 1), S negatives of all
rows in one flat list.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """One random order of the tokens that are not the label, shared by all rows, and where each
    row starts to read it.

    order_U: int64, a permutation of 0 ... V - 2. The number i means token i, or token
        i + 1 where i is not below the row's label.
    first_N: int64, places in order_U.
    """

    order_U: Tensor
    first_N: Tensor

    @classmethod
    def make(cls, num_rows: int, vocab_size: int, device: torch.device) -> Draw:
        order_U = torch.randperm(vocab_size - 1, device=device)
        # randint refuses an empty range: with one token in all, no row ever takes a negative.
        first_N = torch.randint(max(1, vocab_size - 1), (num_rows,), device=device)
        return cls(order_U, first_N)

    def of_rows(self, rows: slice) -> Draw:
        """The draw of some rows."""
        return self._replace(first_N=self.first_N[rows])

    def take(self, counts_N: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        """(rows_S, tokens_S), ascending in row: counts_N[n] distinct tokens for row n, never
        labels_N[n].

        By hand: V = 5, order (2, 0, 3, 1), a row with first = 3, count = 2, label = 2 reads 1 and,
        going round, 2; the second is not below the label, so the tokens are 1 and 3.
        """
        rows_S = torch.repeat_interleave(counts_N)
        begins_N = counts_N.cumsum(0) - counts_N
        place_S = torch.arange(len(rows_S), device=rows_S.device) - begins_N[rows_S]
        num_others = max(1, len(self.order_U))
        others_S = self.order_U[(self.first_N[rows_S] + place_S) % num_others]
        tokens_S = others_S + (others_S >= labels_N[rows_S])
        return rows_S, tokens_S
