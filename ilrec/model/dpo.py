"""Direct preference optimisation, the baseline that the method is measured against.

The tools use it (tools/experiments/train_dpo.py, tools/benchmarks/benchmark_training.py); training
with ilrec/train.py does not.

Shapes: B samples, R rejected responses each, G sequences, T tokens, C places whose logits are made,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ilrec.ops import IGNORE_INDEX


def sdpo_loss(ratios: Tensor, beta: float) -> Tensor:
    """S-DPO (Chen et al., arXiv 2406.09215), a mean over the samples:

        -log sigmoid(-log sum_j exp(beta [(log p_j - log p_j^ref) - (log p_y - log p_y^ref)]))

    With one rejected response this is DPO (Rafailov et al., arXiv 2305.18290).

    ratios: [B, 1 + R], log p - log p^ref of each response, the chosen response first.
    """
    margins_BR = beta * (ratios[:, 1:] - ratios[:, :1])
    return -F.logsigmoid(-margins_BR.logsumexp(1)).mean()


def response_logps(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """log p of each sequence's response, the tokens that have a label: float32 [G].

    The head makes logits only for places where some sequence has a label. Where all responses end
    at the same place, this is no more than the responses need.
    """
    # The logits of place t predict the token of place t + 1.
    labels_GT = batch["labels"][:, 1:]
    places_C = (labels_GT != IGNORE_INDEX).any(0).nonzero()[:, 0]
    # Called as a whole, not through its decoder: a wrapper that averages gradients over the ranks
    # works in the model's own forward.
    logits_GCV = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        logits_to_keep=places_C,
    ).logits
    # A token's loss is minus its log p, and 0 where there is no label.
    losses = F.cross_entropy(
        logits_GCV.flatten(0, 1).float(),
        labels_GT[:, places_C].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return -losses.view(len(labels_GT), len(places_C)).sum(1)
