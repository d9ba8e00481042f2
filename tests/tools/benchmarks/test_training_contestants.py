"""The contestants of tools/benchmarks/benchmark_training.py: their objectives, and the DPO step
against the formula."""

from __future__ import annotations

import math

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from benchmark_training import parse_arguments
from training_contestants import dpo_loss, make_batch, make_model, reference_of, stage_output

TINY = ["--size", "tiny", "--tokens", "12", "--supervised", "3", "8", "--batch_size", "3"]
CPU = torch.device("cpu")


def test_objectives_are_the_recipes():
    """With hard negatives stage1 is above sft on the same batch, stage2 adds distillation."""
    arguments = parse_arguments(TINY)
    model = make_model(arguments, CPU).eval()
    batch = make_batch(arguments, model, 8, CPU)
    sft, stage1, stage2 = (
        stage_output(model, stage, batch).loss.item() for stage in ("sft", "stage1", "stage2")
    )
    assert sft < stage1 < stage2


def test_dpo_starts_at_log_two_and_rejects_other_responses():
    arguments = parse_arguments([*TINY, "--adapter", "none"])
    model = make_model(arguments, CPU).eval()
    reference, batch = reference_of(model), make_batch(arguments, model, 3, CPU)
    assert dpo_loss(model, reference, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    # By hand: log p of the chosen and of the rejected responses, by the model and the reference.
    prompts, labels = batch["input_ids"][:, :9], batch["labels"][:, 9:]
    margins = 0.0
    with reference() as frozen:
        for sign, responses in ((1, labels), (-1, labels.roll(1, 0))):
            ids = torch.cat([prompts, responses], 1)
            margins = margins + sign * (last_logps(model, ids) - last_logps(frozen, ids))
    expected = torch.log1p((-0.1 * margins).exp()).mean().item()
    assert dpo_loss(model, reference, batch).item() == pytest.approx(expected, rel=1e-5)


def last_logps(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """log p of the last three tokens of each sequence."""
    logps = model(input_ids=ids).logits.log_softmax(-1)[:, 8:11]
    return logps.gather(2, ids[:, 9:, None]).sum((1, 2))
