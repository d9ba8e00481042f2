"""Computes rows of a merged tensor: W' = W + scaling B A in float32, rounded once to the dtype that
is written.

LoRA: arXiv 2106.09685, eq. 3. Rank-stabilised scaling: arXiv 2312.03732. DoRA: arXiv 2402.09353,
eq. 5.

Shapes: O output, I input features, r rank, V vocabulary, H hidden size, R trained token rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ilrec.errors import InputError
from ilrec.merging.adapter import LowRank, TensorChange
from ilrec.weights.tensor_files import DTYPES, StoredTensor
from ilrec.weights.tensor_writer import NewTensor

# The size of a block in float32. A thread holds about four of them at a time: the rows that were
# read, the sum, the update, and the rows that are written.
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merged model: the base's tensor and what is done to it.

    num_rows, dtype: those that are written; num_rows is larger than the base's where the vocabulary
    grew.
    """

    name: str
    base: StoredTensor
    change: TensorChange
    dtype: str
    num_rows: int

    @property
    def new(self) -> NewTensor:
        """The tensor as TensorWriter wants it described."""
        shape = (self.num_rows, *self.base.shape[1:]) if self.base.shape else ()
        return NewTensor(self.name, self.dtype, shape)


def blocks(
    tensor: MergedTensor, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of about BLOCK_BYTES, at least one row each."""
    row_elements = max(1, tensor.base.row_bytes // DTYPES[tensor.base.dtype].itemsize)
    step = max(1, BLOCK_BYTES // (4 * row_elements))
    end = tensor.num_rows if stop is None else stop
    for begin in range(start, end, step):
        yield begin, min(begin + step, end)


class RowMerger:
    """Computes the rows of one tensor, block by block. The factor that every block needs is read
    once and kept. Several threads may have mergers of the same tensor."""

    def __init__(self, tensor: MergedTensor) -> None:
        self.tensor = tensor
        self.change = tensor.change
        self.dtype = DTYPES[tensor.dtype]
        # float32, or float64 where that is written.
        self.compute_dtype = torch.promote_types(self.dtype, torch.float32)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the merged tensor, in the dtype that is written.

        Raises InputError if a value is NaN or inf.
        """
        rows = self._stored(start, stop)
        if self.change.computes:
            rows = self._changed(rows.to(self.compute_dtype), start)
        # The one rounding. A value that the dtype cannot hold becomes inf here.
        rows = rows.to(self.dtype)
        if rows.is_floating_point() and not rows.isfinite().all():
            raise InputError(self._nonfinite(start, stop))
        return rows

    def _stored(self, start: int, stop: int) -> Tensor:
        """The rows as they are in the base, or in the tensor that replaces the base's.

        New tokens' rows are in neither. They are 0 here, until _changed sets them.
        """
        source = self.change.whole or self.tensor.base
        rows = source.rows(min(start, source.num_rows), min(stop, source.num_rows))
        num_missing = stop - start - len(rows)
        if num_missing:
            rows = torch.cat([rows, rows.new_zeros(num_missing, *rows.shape[1:])])
        return rows

    def _changed(self, rows: Tensor, start: int) -> Tensor:
        """The rows from `start` on with the adapter's change.

        Writes into `rows`, which _stored read for this call alone.
        """
        stop = start + len(rows)
        # LoRA: W + scaling B A.
        if self.change.low_rank:
            rows.add_(self._update(self.change.low_rank, start, stop))

        # DoRA: the direction of W + scaling B A, at the length that was trained.
        if self.change.magnitude:
            magnitude_O = self.change.magnitude.rows(start, stop).to(rows.dtype)
            rows *= (magnitude_O / torch.linalg.vector_norm(rows, dim=1))[:, None]

        # Trained token rows stand for themselves: nothing is added to them.
        if self.change.token_rows_RH:
            is_here_R = (self._token_ids_R >= start) & (self._token_ids_R < stop)
            for row in is_here_R.nonzero()[:, 0].tolist():
                trained_1H = self.change.token_rows_RH.rows(row, row + 1)
                rows[self.change.token_ids[row] - start] = trained_1H[0]
        return rows

    def _update(self, low_rank: LowRank, start: int, stop: int) -> Tensor:
        """Rows of scaling B A, or of its transpose for an embedding."""
        # The rows of an embedding's update are the columns of A, which cannot be read alone. All of
        # A is read for each block: [r, V], small beside the embedding itself, [V, H].
        if low_rank.is_embedding:
            a_rV = low_rank.a.rows().to(self.compute_dtype)
            update = (self._factor @ a_rV[:, start:stop]).T
        else:
            b_rows = low_rank.b.rows(start, stop).to(self.compute_dtype)
            update = b_rows @ self._factor
        return update.mul_(low_rank.scaling)

    @cached_property
    def _factor(self) -> Tensor:
        """The factor that all rows need: A [r, I], or an embedding's B [H, r]."""
        assert self.change.low_rank
        low_rank = self.change.low_rank
        factor = low_rank.b if low_rank.is_embedding else low_rank.a
        return factor.rows().to(self.compute_dtype)

    @cached_property
    def _token_ids_R(self) -> Tensor:
        return torch.tensor(self.change.token_ids, dtype=torch.int64)

    def _nonfinite(self, start: int, stop: int) -> str:
        """The message for rows with NaN or inf: it says where the value came from."""
        source = (self.change.whole or self.tensor.base).path
        stored = self._stored(start, stop)
        if not stored.isfinite().all():
            origin = f"as stored in {source}"
        elif stored.to(self.dtype).isfinite().all():
            origin = "in the adapter, or in its sum with the base"
        else:
            origin = f"once written as {self.tensor.dtype}; merge with --dtype bfloat16 or float32"
        return (
            f"{self.tensor.name}: NaN or inf in rows {start} to {stop - 1}, {origin}; "
            "nothing was written"
        )
