"""Trackers: which are chosen, what is missing, and that their runs end with the training.

mlflow, wandb and the others are not installed for the tests. Modules made here stand in for them.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from transformers.integrations import MLflowCallback

from ilrec.config.sections import TrainingConfig
from ilrec.errors import InputError
from ilrec.training.trackers import MLflow, chosen_trackers, tracker_callbacks


@pytest.fixture
def wandb(monkeypatch) -> ModuleType:
    """A module that counts how often its run was ended."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.ended = 0

    def finish():
        module.ended += 1

    module.finish = finish
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none", []),
        ("tensorboard", ["tensorboard"]),
        ("[tensorboard, wandb]", ["tensorboard", "wandb"]),
        ([], []),
    ],
)
def test_several_may_be_chosen(given, expected, wandb):
    assert chosen_trackers(TrainingConfig(report_to=given)) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("comet", "report_to: expected one of tensorboard, wandb, .*, or a list such as"),
        ("[wandb, comet]", "report_to: expected one of tensorboard, wandb"),
        ("[none, wandb]", "report_to: expected none alone, or the names of trackers"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(report_to=given)


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="report_to: mlflow is not installed; pip install mlflow"):
        chosen_trackers(TrainingConfig(report_to="mlflow"))


def test_tensorboard_writes_into_the_run_directory(tmp_path):
    (callback,) = tracker_callbacks(["tensorboard", "trackio"], str(tmp_path))
    callback.tb_writer.add_scalar("loss", 1.0, 1)
    callback.tb_writer.close()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_mlflow_gets_names_that_exclude_no_other(monkeypatch):
    """In its local folder, `loss` is a file and cannot be the folder of `loss/preference`."""
    logged = {}
    monkeypatch.setattr(
        MLflowCallback, "on_log", lambda self, args, state, control, logs, **_: logged.update(logs)
    )
    # Without its __init__, which imports mlflow.
    logs = {"loss": 1, "loss/preference": 2}
    MLflow.on_log(object.__new__(NoMLflow), None, None, None, logs=logs)
    assert logged == {"loss": 1, "loss.preference": 2}


class NoMLflow(MLflow):
    def __del__(self):
        pass


@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_ends_with_the_training_on_rank_0_alone(is_first, wandb, tmp_path):
    (callback,) = tracker_callbacks(["wandb"], str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=is_first)
    callback.on_train_end(None, state, None)
    assert wandb.ended == is_first
