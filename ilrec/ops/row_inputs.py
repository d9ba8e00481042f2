"""What a backend is given beside states and head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ilrec.ops.objective import Objective
from ilrec.ops.random_negatives import Draw


class RowInputs(NamedTuple):
    """All that is known of the N rows and is not differentiated. Every row has a label.

    candidate_ids_C: int64, ascending, the tokens that can be negatives; None: all.
    rewards: (keys_E int64, values_E), key = row * V + token, ascending and unique: the tokens that
        continue an item, whether or not they have a reward. None where no term looks at them.
    draw: where negatives are drawn at random, which ones; else None.
    slab_bytes: memory for logits.
    """

    labels_N: Tensor
    objective: Objective
    candidate_ids_C: Tensor | None
    rewards: tuple[Tensor, Tensor] | None
    draw: Draw | None
    slab_bytes: int
