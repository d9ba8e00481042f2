"""The declared settings: names, defaults, and the choices that come from a library."""

import contextlib
import dataclasses

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from ilrec.config.sasrec import SASRecConfig
from ilrec.config.sections import POLYNOMIAL_END, SCHEDULES, SECTIONS


def test_no_two_sections_share_a_field():
    names = [f.name for cls in SECTIONS.values() for f in dataclasses.fields(cls)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("section", [*SECTIONS.values(), SASRecConfig])
def test_defaults_are_in_their_domains(section):
    declared = {name: f.default for name, f in section.__dataclass_fields__.items()}
    assert dataclasses.asdict(section()) == declared


def test_schedules_are_those_of_the_library_that_need_nothing_more():
    """The others need arguments (ValueError, TypeError) or the loss."""
    needs_nothing = set()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    for schedule in SchedulerType:
        with contextlib.suppress(ValueError, TypeError):
            made = get_scheduler(schedule, optimizer, num_warmup_steps=1, num_training_steps=2)
            if isinstance(made, torch.optim.lr_scheduler.LambdaLR):
                needs_nothing.add(schedule.value)
    assert set(SCHEDULES) == needs_nothing


def test_the_polynomial_schedule_ends_where_the_library_says():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=POLYNOMIAL_END)
    with pytest.raises(ValueError, match="lr_end"):
        get_scheduler("polynomial", optimizer, num_warmup_steps=1, num_training_steps=2)
