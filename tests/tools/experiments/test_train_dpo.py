"""S-DPO: its loss against the formula, its groups, and a run that learns to prefer."""

from __future__ import annotations

import json

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from conftest import ROOT
from tiny_models import batch, tiny_llama
from train_dpo import main, response_logps, sdpo_loss


def test_loss_by_hand():
    """One rejected item is DPO: -log sigmoid(beta (chosen - rejected)). With two, -log 1 / (1 +
    sum_j e^{beta (r_j - c)})."""
    ratios = torch.tensor([[0.3, -0.2], [-0.1, 0.4]], dtype=torch.float64)
    dpo = -torch.nn.functional.logsigmoid(0.5 * (ratios[:, 0] - ratios[:, 1])).mean()
    torch.testing.assert_close(sdpo_loss(ratios, 0.5), dpo)
    three = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    assert sdpo_loss(three, 1.0).item() == pytest.approx(
        torch.log1p(torch.tensor([1.0, 2.0]).double().exp().sum()).item()
    )


def test_log_probabilities_are_of_the_response_alone():
    rows, model = batch(3), tiny_llama()
    logps = model(input_ids=rows["input_ids"]).logits.log_softmax(-1)
    expected = [
        sum(
            logps[g, t - 1, rows["labels"][g, t]] for t in range(12) if rows["labels"][g, t] != -100
        )
        for g in range(3)
    ]
    torch.testing.assert_close(response_logps(model, rows), torch.stack(expected))


def test_a_run_prefers_what_was_chosen(data, base, tmp_path):
    """The reference is the model itself at the start: the first loss is log(1 + R); later ones are
    lower."""
    main(
        [
            "--num_rejected",
            "2",
            "--dpo_beta",
            "1",
            "--config",
            str(ROOT / "ilrec/recipes/sft.yaml"),
            "--model",
            str(base),
            "--data",
            str(data),
            "--output_dir",
            str(tmp_path / "dpo"),
            "--max_steps",
            "8",
            "--logging_steps",
            "1",
            "--lora_dropout",
            "0",
            "--learning_rate",
            "3e-3",
            "--gradient_accumulation_steps",
            "1",
        ]
    )
    losses = [
        line["loss"]
        for line in map(json.loads, (tmp_path / "dpo" / "metrics.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-4)
    assert losses[-1] < losses[0] - 0.1
    assert (tmp_path / "dpo" / "final" / "ilrec.yaml").exists()
