"""Where the numbers of a run are logged beside metrics.jsonl: transformers' integrations, chosen by
`report_to`. Only rank 0 writes.

Projects, servers and offline modes are set in the environment variables of each tracker, such as
WANDB_MODE and MLFLOW_TRACKING_URI; see the integration in transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import MLflowCallback, TensorBoardCallback

from ilrec.config.sections import TrainingConfig
from ilrec.errors import InputError

# Their runs end with the process, in a hook that a process of a launcher never reaches
# (ilrec/processes.py: leave_process_group). The other integrations end theirs with the training.
END_WITH_THE_PROCESS = ("wandb", "swanlab")
# The callbacks of these are made below. The trainer makes those of the others.
MADE_HERE = ("tensorboard", "mlflow")


def chosen_trackers(config: TrainingConfig) -> list[str]:
    """The names in `report_to`. Raises InputError if a tracker's package is not installed."""
    given = config.report_to if isinstance(config.report_to, list) else [config.report_to]
    names = [name for name in given if name != "none"]
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"report_to: {name} is not installed; pip install {name}, or take it out of "
                "report_to"
            )
    return names


def tracker_callbacks(names: list[str], output_dir: str) -> list[TrainerCallback]:
    """The integrations that are not made by the trainer from its arguments (MADE_HERE), and what
    the others need beside."""
    callbacks: list[TrainerCallback] = []
    if "tensorboard" in names:
        callbacks.append(_tensorboard(Path(output_dir) / "tensorboard"))
    if "mlflow" in names:
        callbacks.append(MLflow())
    ending = [name for name in END_WITH_THE_PROCESS if name in names]
    if ending:
        callbacks.append(EndRuns(ending))
    return callbacks


def _tensorboard(directory: Path) -> TensorBoardCallback:
    """transformers' integration, but writing into the run directory under a plain name."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(str(directory)))


class MLflow(MLflowCallback):
    """transformers' integration, with loss.preference for loss/preference.

    MLflow's local folder keeps a metric in a file of its name. So `loss` and `loss/preference`
    exclude each other there, and all that is logged with them would be lost.
    """

    def on_log(  # type: ignore[override]  # as TrainerCallback declares it
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = {name.replace("/", "."): value for name, value in kwargs.pop("logs").items()}
        super().on_log(args, state, control, logs=logs, **kwargs)


class EndRuns(TrainerCallback):
    """Ends the runs of trackers when the training ends, so that all they have is written."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            for name in self.names:
                importlib.import_module(name).finish()
