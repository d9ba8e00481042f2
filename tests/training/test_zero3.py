"""The checks around ZeRO-3 that need no ranks: contradictions between ds_config and recipe, and
empty saved tensors."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ilrec.errors import InputError
from ilrec.training import zero3
from ilrec.training.zero3 import check_saved, read_ds_config

SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1.0,
}
SHIPPED = sorted((Path(__file__).parent.parent.parent / "ds_configs").glob("*.json"))


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
            "ds.json: train_micro_batch_size_per_gpu = 8 contradicts per_device_train_batch_size = 4",
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
    ],
)
def test_contradictions(tmp_path, config, message):
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


def test_empty_tensors_are_found(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    check_saved(tmp_path)
    save_file({"a": torch.ones(2), "b": torch.empty(0)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match="1 tensors of size 0 were saved, first b"):
        check_saved(tmp_path)


def test_nothing_saved_is_found(tmp_path):
    with pytest.raises(RuntimeError, match="no weights were saved"):
        check_saved(tmp_path)


class Evil:
    """What a pickle from elsewhere may be: opening it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_that_a_checkpoint_holds_is_run(tmp_path):
    """As DeepSpeed opens files, with weights_only=False; its own classes are data and open."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    torch.save({"scaler": LossScaler(1.0), "weights": torch.ones(2)}, tmp_path / "good.pt")
    torch.save(
        {"weights": torch.ones(2), "more": Evil(f"touch '{tmp_path}/ran'")}, tmp_path / "evil.pt"
    )
    with zero3.weights_only("checkpoint-5"):
        assert torch.load(tmp_path / "good.pt", weights_only=False)["weights"].sum() == 2
    with (
        pytest.raises(InputError, match=r"checkpoint-5 holds a pickle of \S*system, which"),
        zero3.weights_only("checkpoint-5"),
    ):
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert not (tmp_path / "ran").exists() and zero3.FORCE_WEIGHTS_ONLY not in os.environ


def test_states_are_pickled_as_data_on_every_python():
    """3.11.0 to 3.11.3 would write an enum's member as a call of getattr, which nothing opened as
    data may name."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    zero3.allow_state_classes()
    pickled = pickle.dumps({"stage": ZeroStageEnum.weights}, protocol=2)
    assert b"getattr" not in pickled and pickle.loads(pickled)["stage"] is ZeroStageEnum.weights


def test_a_lock_that_a_killed_compiler_left_is_named(tmp_path, monkeypatch, caplog):
    """torch waits for it, and for ever where nobody compiles."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    zero3.warn_of_compile_locks()
    assert not caplog.records
    (tmp_path / "deepspeed_shm_comm").mkdir()
    (tmp_path / "deepspeed_shm_comm" / "lock").touch()
    zero3.warn_of_compile_locks()
    assert (
        "deepspeed_shm_comm/lock: an extension is being compiled" in caplog.text
        and "remove the file" in caplog.text
    )
