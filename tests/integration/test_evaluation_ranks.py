"""Evaluation while training on two real ranks: under ZeRO-3 with every parameter sharded."""

import json
from pathlib import Path

import pytest
import torch
from command_words import flags
from conftest import launch
from safetensors.torch import load_file

from ilrec.rank import main as rank_main
from ilrec.training.manifest import MANIFEST

pytestmark = pytest.mark.launch


@pytest.fixture
def fully_sharded(tmp_path) -> Path:
    """ZeRO-3 that keeps no parameter whole, however small it is."""
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    config = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(config))
    return path


def test_sharded_ranks_measure_what_one_process_does(fully_sharded, data, base, tmp_path):
    """13 users in batches of 3, and titles of many lengths: the ranks have unequal shares, and
    their searches end at different levels. The run ends with the weights of one without
    evaluations."""
    words = flags(
        ds_config=fully_sharded,
        config="ilrec/recipes/sft.yaml",
        data=data,
        model=base,
        item_format="title",
        lora_rank=4,
        lora_dropout=0.1,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        learning_rate=2e-2,
    )
    evaluation = flags(
        eval_strategy="steps",
        eval_steps=2,
        eval_users=13,
        per_device_eval_batch_size=3,
        save_best="true",
    )
    for name, more in (("with", evaluation), ("without", [])):
        output = ["--output_dir", str(tmp_path / name)]
        result = launch("torchrun", "ilrec/train.py", *words, *output, *more, timeout=900)
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]

    lines = map(json.loads, (tmp_path / "with" / "metrics.jsonl").read_text().splitlines())
    values = {line["step"]: line["eval_ndcg@10"] for line in lines if "eval_ndcg@10" in line}
    assert list(values) == [2, 4]
    final = tmp_path / "with" / "final"
    best = json.loads((final / MANIFEST).read_text())["best"]
    assert best["value"] == max(values.values()) == values[best["step"]]
    rank_main(flags(model=final, split="valid", num_users=13, output=tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text())["metrics"]["ndcg@10"] == best["value"]

    name = "adapter_model.safetensors"
    expected = load_file(tmp_path / "without" / "checkpoint-4" / name)
    for tensor, value in load_file(tmp_path / "with" / "checkpoint-4" / name).items():
        assert torch.equal(value, expected[tensor]), tensor
