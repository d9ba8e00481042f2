"""The loss of DPO and S-DPO against the formula, and the log probabilities that it is made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_models import batch, tiny_llama

from ilrec.model.dpo import response_logps, sdpo_loss


def test_one_rejected_response_is_dpo():
    """-log sigmoid(beta (chosen - rejected))."""
    ratios = torch.tensor([[0.3, -0.2], [-0.1, 0.4]], dtype=torch.float64)
    expected = -F.logsigmoid(0.5 * (ratios[:, 0] - ratios[:, 1])).mean()
    torch.testing.assert_close(sdpo_loss(ratios, 0.5), expected)


def test_two_rejected_responses_by_hand():
    """-log 1 / (1 + sum_j e^{beta (r_j - c)})."""
    ratios = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    expected = torch.log1p(torch.tensor([1.0, 2.0]).double().exp().sum())
    assert sdpo_loss(ratios, 1.0).item() == pytest.approx(expected.item())


def test_log_probabilities_are_of_the_response_alone():
    """The responses differ in length, so that some places have a label in one row only."""
    rows, model = batch(3), tiny_llama()
    logps = model(input_ids=rows["input_ids"]).logits.log_softmax(-1)
    expected = []
    for g in range(3):
        labelled = [t for t in range(12) if rows["labels"][g, t] != -100]
        expected.append(sum(logps[g, t - 1, rows["labels"][g, t]] for t in labelled))
    torch.testing.assert_close(response_logps(model, rows), torch.stack(expected))
