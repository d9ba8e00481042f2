"""The declared settings: names, defaults, and the choices that come from a library."""

import dataclasses

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import SECTIONS
from ilrec.config.training import POLYNOMIAL_END, SCHEDULES


def test_no_two_sections_share_a_field():
    names = [f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("section", [*SECTIONS.values(), SASRecConfig])
def test_defaults_are_in_their_domains(section):
    declared = {name: f.default for name, f in section.__dataclass_fields__.items()}
    assert dataclasses.asdict(section()) == declared


# What some schedules cannot do without.
SCHEDULE_ARGUMENTS = {
    "cosine_with_min_lr": {"min_lr": 0.0},
    "cosine_warmup_with_min_lr": {"min_lr": 0.0},
    "warmup_stable_decay": {"num_decay_steps": 1},
}


def test_schedules_are_those_of_the_library_that_depend_on_the_step_alone():
    """The others depend on the loss."""
    by_step = set()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    for schedule in SchedulerType:
        arguments = SCHEDULE_ARGUMENTS.get(schedule.value, {})
        made = get_scheduler(schedule, optimizer, 1, 2, arguments)
        if isinstance(made, torch.optim.lr_scheduler.LambdaLR):
            by_step.add(schedule.value)
    assert set(SCHEDULES) == by_step


@pytest.mark.parametrize("schedule", SCHEDULE_ARGUMENTS)
def test_these_schedules_need_arguments(schedule):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises((ValueError, TypeError)):
        get_scheduler(schedule, optimizer, 1, 2)


def test_the_polynomial_schedule_ends_where_the_library_says():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=POLYNOMIAL_END)
    with pytest.raises(ValueError, match="lr_end"):
        get_scheduler("polynomial", optimizer, num_warmup_steps=1, num_training_steps=2)
