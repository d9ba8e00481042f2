"""The vocabulary operation: hidden states in, the whole ILRec loss out, without ever holding the
logits of all rows.

Tensors only: this package knows no tokenizer, no trainer, no ranks and no files. Read it so:

- objective.py, what is optimised: the settings, the terms, how they are weighed
- loss.py, `cross_layer_loss`: its arguments are checked in checks.py and become a RowInputs
- reference.py, the specification: every equation once, in plain autograd
- backends.py, which backend runs: row_slab.py (the default) or vocab_stream.py (tight memory)
- fused.py and head_gemm.py, what both share: gradients made in forward, and the matrix products
- row_math.py, what happens to a row of logits, in PyTorch; triton_math.py, triton_rows.py and
  triton_tiles.py, the same for CUDA; random_negatives.py, for ablations

For example, three tokens, and the identity as head, so that states are logits. The last layer has
z = log(8, 4, 4), one readout layer has ze = log(2, 4, 2), the label is token 0. With beta = 0.5,
distillation_weight = 2 and alpha = 1.5, token 1 is a hard negative and token 2 is not:

    loss      tensor(1.2629), which is 0.9163 + 2 * 0.1733
    stats_5   preference 0.9163, distillation 0.1733, reward 0.0, num_negatives 1.0,
              num_rows_without_negative 0.0
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ilrec.ops.objective import (
    BACKENDS,
    DISTILLATION_TARGETS,
    IGNORE_INDEX,
    NEGATIVE_TOKENS,
    NEGATIVES_FROM,
    REWARD_TOKENS,
    STATS,
    THRESHOLDS,
    Objective,
)

if TYPE_CHECKING:
    from ilrec.ops.loss import cross_layer_loss

__all__ = [
    "BACKENDS",
    "DISTILLATION_TARGETS",
    "IGNORE_INDEX",
    "NEGATIVES_FROM",
    "NEGATIVE_TOKENS",
    "REWARD_TOKENS",
    "STATS",
    "THRESHOLDS",
    "Objective",
    "cross_layer_loss",
]


def __getattr__(name: str) -> Any:
    # Imported when it is first asked for, because it needs torch: ilrec/config reads the choices
    # above, and should not wait 2 s for torch.
    if name == "cross_layer_loss":
        from ilrec.ops.loss import cross_layer_loss

        return cross_layer_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
