"""ObjectiveConfig and the operation's Objective: one list of choices, one set of checks."""

import dataclasses
import subprocess
import sys

import pytest
from conftest import ROOT

from ilrec.config.sections import ObjectiveConfig
from ilrec.errors import InputError
from ilrec.ops.objective import CHOICES, Objective


def test_the_operation_gets_its_settings_from_the_configuration():
    config = ObjectiveConfig(beta=0.25, weight_temperature=0.5, max_negatives=7)
    goal = config.vocabulary_objective()
    for field in dataclasses.fields(Objective):
        assert getattr(goal, field.name) == getattr(config, field.name), field.name


@pytest.mark.parametrize("name", CHOICES)
def test_both_have_the_same_choices(name):
    domain = ObjectiveConfig.__dataclass_fields__[name].metadata["domain"]
    assert domain.choices == CHOICES[name]


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"negatives_from": "last_layer", "beta": 0.1, "distillation_weight": 0.5},
            "distillation_weight: expected 0 with negatives_from last_layer, .* got 0.5",
        ),
        (
            {"negatives_from": "random", "beta": 0.1, "negative_tokens": "items"},
            "negative_tokens: expected all with negatives_from random, .* got 'items'",
        ),
        ({"weight_temperature": 0}, "weight_temperature: expected a number, above 0, got 0"),
        ({"negatives_from": "layers"}, "negatives_from: expected one of readout, last_layer"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(InputError, match=message):
        ObjectiveConfig(**fields)


def test_the_settings_are_read_without_torch():
    """A wrong word on a command line is reported at once; torch takes seconds to load."""
    check = "import sys, ilrec.config.sections; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
