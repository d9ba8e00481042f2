"""Rows of a merged tensor: W' = W + scaling B A in float32, rounded once to what is written.

LoRA: arXiv 2106.09685, eq. 3; rank-stabilised scaling: arXiv 2312.03732; DoRA: arXiv 2402.09353,
    eq. 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ilrec.errors import InputError
from ilrec.merging.adapter import LowRank
from ilrec.weights.tensor_files import DTYPES

if TYPE_CHECKING:
    from ilrec.merging.plan import MergedTensor

# Of a block in float32. A thread holds about four: what was read, the sum, the update, what is
# written.
BLOCK_BYTES = 4 * 2**20


def blocks(
    tensor: MergedTensor, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows, at least one row each."""
    row_elements = max(1, tensor.base.row_bytes // DTYPES[tensor.base.dtype].itemsize)
    step = max(1, BLOCK_BYTES // (4 * row_elements))
    end = tensor.num_rows if stop is None else stop
    return ((begin, min(begin + step, end)) for begin in range(start, end, step))


class RowMerger:
    """Rows of one tensor, block by block: the factor that all blocks need is read once."""

    def __init__(self, tensor: MergedTensor) -> None:
        self.tensor = tensor
        self.change = tensor.change
        self.dtype = DTYPES[tensor.dtype]
        self.compute_dtype = torch.promote_types(self.dtype, torch.float32)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of the merged tensor, in its dtype. Raises InputError where one is NaN
        or inf."""
        stored = self._stored(start, stop)
        rows = (
            self._changed(stored.to(self.compute_dtype), start) if self.change.computes else stored
        )
        rows = rows.to(self.dtype)
        if rows.is_floating_point() and not rows.isfinite().all():
            raise InputError(self._nonfinite(start, stop))
        return rows

    def _stored(self, start: int, stop: int) -> Tensor:
        """Of the base, or what replaces it; rows that neither has are 0 until the adapter's token
        rows are written into them."""
        source = self.change.whole or self.tensor.base
        rows = source.rows(min(start, source.num_rows), min(stop, source.num_rows))
        if len(rows) < stop - start:
            rows = torch.cat([rows, rows.new_zeros(stop - start - len(rows), *rows.shape[1:])])
        return rows

    def _changed(self, rows: Tensor, start: int) -> Tensor:
        """`rows` is written into where it is a copy already."""
        stop = start + len(rows)
        if self.change.low_rank:
            rows = rows.add_(self._update(self.change.low_rank, start, stop))
        if self.change.magnitude:
            magnitude_O = self.change.magnitude.rows(start, stop).to(rows.dtype)
            rows *= (magnitude_O / torch.linalg.vector_norm(rows, dim=1))[:, None]
        if self.change.token_rows_RH:
            for row in (
                ((self._token_ids_R >= start) & (self._token_ids_R < stop)).nonzero()[:, 0].tolist()
            ):
                rows[self.change.token_ids[row] - start] = self.change.token_rows_RH.rows(
                    row, row + 1
                )[0]
        return rows

    def _update(self, low_rank: LowRank, start: int, stop: int) -> Tensor:
        """Of scaling B A, or of its transpose."""
        if low_rank.is_embedding:
            update = (self._factor @ low_rank.a.rows().to(self.compute_dtype)[:, start:stop]).T
        else:
            update = low_rank.b.rows(start, stop).to(self.compute_dtype) @ self._factor
        return update.mul_(low_rank.scaling)

    @cached_property
    def _factor(self) -> Tensor:
        """What has no dimension along the rows: A [r, I], or an embedding's B [H, r]."""
        assert self.change.low_rank
        low_rank = self.change.low_rank
        return (low_rank.b if low_rank.is_embedding else low_rank.a).rows().to(self.compute_dtype)

    @cached_property
    def _token_ids_R(self) -> Tensor:
        return torch.tensor(self.change.token_ids, dtype=torch.int64)

    def _nonfinite(self, start: int, stop: int) -> str:
        source, stored = (self.change.whole or self.tensor.base).path, self._stored(start, stop)
        if not stored.isfinite().all():
            where = f"as stored in {source}"
        elif stored.to(self.dtype).isfinite().all():
            where = "of the adapter, or what it adds up to"
        else:
            where = f"once written as {self.tensor.dtype}; merge with --dtype bfloat16 or float32"
        return f"{self.tensor.name}: NaN or inf in rows {start} to {stop - 1}, {where}; nothing was written"
