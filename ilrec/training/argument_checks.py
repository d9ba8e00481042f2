"""Settings that only transformers can judge: whether it refuses them is found out before a model is
read, and told in one message."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.training_args import OptimizerNames

from ilrec.config.sections import TrainConfig
from ilrec.errors import InputError
from ilrec.processes import is_from_backend

# Their functions take no arguments, and get_scheduler passes over any that are given.
WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")


@contextlib.contextmanager
def arguments_checked() -> Iterator[None]:
    """Inside, what transformers refuses about its arguments becomes an InputError.

    Errors of the connection between ranks pass through (processes.joining_ranks).
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        if isinstance(error, InputError) or is_from_backend(error):
            raise
        raise InputError(f"settings of the training loop: {error}") from None


def check_schedule(config: TrainConfig) -> None:
    """Raises InputError if the schedule does not take lr_scheduler_kwargs, or needs others.

    Starts no process group.
    """
    name = config.training.lr_scheduler_type
    options = config.training_arguments.get("lr_scheduler_kwargs") or {}
    if options and name in WITHOUT_ARGUMENTS:
        raise InputError(f"lr_scheduler_kwargs: expected none, because {name} takes no arguments")
    optimizer = torch.optim.SGD(_one_parameter(), lr=config.training.learning_rate)
    try:
        get_scheduler(name, optimizer, 1, 2, options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"lr_scheduler_kwargs: {options} does not fit lr_scheduler_type {name}: {error}"
        ) from None


def check_optimizer(arguments: TrainingArguments) -> None:
    """Raises InputError if the optimizer's package is missing, or its settings do not fit it."""
    name = OptimizerNames(arguments.optim).value
    try:
        cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        cls(_one_parameter(), **options)
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"optim: {name} cannot be used with these settings: {error}") from None


def _one_parameter() -> list[Any]:
    return [torch.nn.Parameter(torch.zeros(1))]
