"""DeepSpeed's configuration file: contradictions with the recipe, and what decides a result."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from ilrec.errors import InputError
from ilrec.training.ds_config import deciding_settings, read_ds_config

SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
    "optim": "adafactor",
}
SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))


def written(tmp_path, **config) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shipped_configs_fit_any_recipe(path, dtype):
    assert read_ds_config(path, SETTINGS, dtype, 8)["zero_optimization"]["stage"] in (2, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 8},
            "ds.json: train_micro_batch_size_per_gpu = 8 contradicts "
            "per_device_train_batch_size = 4",
        ),
        (
            {"gradient_accumulation_steps": 1},
            "gradient_accumulation_steps = 1 contradicts gradient_accumulation_steps = 2",
        ),
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5 contradicts max_grad_norm = 1.0"),
        (
            {"train_batch_size": 8},
            r"train_batch_size = 8 contradicts the recipe: .* x 2 ranks = 16",
        ),
        ({"bf16": {"enabled": True}}, "bf16.enabled = true contradicts dtype float32"),
        ({"fp16": {"enabled": True}}, "fp16.enabled = true contradicts dtype float32"),
        ({"zero_optimisation": {}}, "unknown key 'zero_optimisation'.*did you mean"),
        ({"bf16": True}, "ds.json: bf16: expected an object such as .*, got True"),
        ({"optimizer": {}}, "ds.json: optimizer takes the place of optim, which the recipe gives"),
        ({"zero_optimization": {"stage": 7}}, "ds.json: zero_optimization.stage: .*, got 7"),
    ],
)
def test_contradictions_and_mistakes(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        read_ds_config(written(tmp_path, **config), SETTINGS, torch.float32, 2)


def test_agreeing_numbers_are_accepted(tmp_path):
    path = written(
        tmp_path, train_batch_size=16, train_micro_batch_size_per_gpu=4, bf16={"enabled": False}
    )
    assert read_ds_config(path, SETTINGS, torch.float32, 2)["train_batch_size"] == 16


def test_missing_and_malformed(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_ds_config(tmp_path / "none.json", SETTINGS, torch.float32, 1)
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(InputError, match=r"ds.json:1:2: not valid JSON"):
        read_ds_config(tmp_path / "ds.json", SETTINGS, torch.float32, 1)


def test_what_decides_the_result():
    def found(**config) -> dict:
        return deciding_settings({"zero_optimization": {"stage": 3}, **config})

    # What is "auto", or how shards are moved and kept, does not count.
    plain = found()
    assert found(bf16={"enabled": "auto"}, train_batch_size="auto", steps_per_print=5) == plain
    moved = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5}
    assert found(zero_optimization=moved) == plain

    # Everything else does, also a key that nobody knows yet.
    different = [
        plain,
        deciding_settings(None),
        found(zero_optimization={"stage": 2}),
        found(optimizer={"type": "Lion"}),
        found(zero_optimization={"stage": 3, "zero_quantized_gradients": True}),
        found(one_that_comes=1),
    ]
    for index, one in enumerate(different):
        assert one not in different[:index]
