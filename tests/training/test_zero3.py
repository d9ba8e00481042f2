"""The parts of zero3.py that need no ranks: empty saved tensors, unsafe pickles, stale locks."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from ilrec.errors import InputError
from ilrec.training import zero3
from ilrec.training.zero3 import check_saved


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
    """DeepSpeed opens files with weights_only=False. Its own classes are data and are opened."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    good = {"scaler": LossScaler(1.0), "weights": torch.ones(2)}
    evil = {"weights": torch.ones(2), "more": Evil(f"touch '{tmp_path}/ran'")}
    torch.save(good, tmp_path / "good.pt")
    torch.save(evil, tmp_path / "evil.pt")
    with zero3.weights_only("checkpoint-5"):
        assert torch.load(tmp_path / "good.pt", weights_only=False)["weights"].sum() == 2
    message = r"checkpoint-5 holds a pickle of \S*system, which"
    with pytest.raises(InputError, match=message), zero3.weights_only("checkpoint-5"):
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    assert zero3.FORCE_WEIGHTS_ONLY not in os.environ


def test_states_are_pickled_as_data_on_every_python():
    """3.11.0 to 3.11.3 would write a member of an enum as a call of getattr, and a file that is
    opened as data may not name getattr."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    zero3.allow_state_classes()
    pickled = pickle.dumps({"stage": ZeroStageEnum.weights}, protocol=2)
    assert b"getattr" not in pickled
    assert pickle.loads(pickled)["stage"] is ZeroStageEnum.weights


def test_a_lock_that_a_killed_compiler_left_is_named(tmp_path, monkeypatch, caplog):
    """torch waits for it, and for ever if no process compiles."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    zero3.warn_of_compile_locks()
    assert not caplog.records
    (tmp_path / "deepspeed_shm_comm").mkdir()
    (tmp_path / "deepspeed_shm_comm" / "lock").touch()
    zero3.warn_of_compile_locks()
    assert "deepspeed_shm_comm/lock: an extension is being compiled" in caplog.text
    assert "remove the file" in caplog.text
