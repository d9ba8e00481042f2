"""S-DPO training: a run that learns to prefer. Its loss: tests/model/test_dpo.py."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT

from ilrec.errors import InputError
from ilrec.experiments.train_dpo import main
from ilrec.training.metrics_log import read_steps


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--num_rejected", "0", "--num_rejected: expected a whole number, 1 or more, got '0'"),
        ("--dpo_beta", "0", "--dpo_beta: expected a number, above 0, got '0'"),
    ],
)
def test_numbers_outside_their_domain_are_refused(flag, value, message):
    words = {"--num_rejected": "1", "--dpo_beta": "1", flag: value}
    with pytest.raises(InputError, match=message):
        main([word for pair in words.items() for word in pair])


def test_a_run_prefers_what_was_chosen(data, base, tmp_path):
    """The reference is the model itself at the start: the first loss is log(1 + R); later ones are
    lower."""
    fields = {
        "num_rejected": 2,
        "dpo_beta": 1,
        "config": ROOT / "ilrec/recipes/sft.yaml",
        "model": base,
        "data": data,
        "output_dir": tmp_path / "dpo",
        "max_steps": 8,
        "logging_steps": 1,
        # Without dropout the model and its frozen copy agree at the start.
        "lora_dropout": 0,
        "learning_rate": 3e-3,
        "gradient_accumulation_steps": 1,
    }
    main([f"--{name}={value}" for name, value in fields.items()])
    losses = [line["loss"] for line in read_steps(tmp_path / "dpo")]
    assert losses[0] == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=1e-4)
    assert losses[-1] < losses[0] - 0.1
    assert (tmp_path / "dpo" / "final" / "ilrec.yaml").exists()
