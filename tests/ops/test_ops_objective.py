"""The settings of the operation: what is refused, what they need, and how terms are weighed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ops_cases import SFT, objective

from ilrec.ops.objective import STATS, TermSums, weigh


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"beta": -1.0}, "beta"),
        ({"distillation_weight": math.nan}, "distillation_weight"),
        ({"reward_weight": math.inf}, "reward_weight"),
        ({"alpha": 0.0}, "alpha"),
        ({"weight_temperature": 0.0}, "weight_temperature"),
        ({"weight_temperature": math.inf}, "weight_temperature"),
        ({"reward_temperature": 0.0}, "reward_temperature"),
        ({"threshold": "sharp"}, "one of probability, logit"),
        ({"distillation_target": "all"}, "one of ensemble, per_layer"),
        ({"negatives_from": "elsewhere"}, "one of readout, last_layer, random"),
        (
            {"negatives_from": "last_layer", "distillation_weight": 0.5},
            "distillation_weight: expected 0 with negatives_from last_layer",
        ),
        (
            {"negatives_from": "random", "negative_tokens": "items"},
            "negative_tokens: expected all with negatives_from random",
        ),
        ({"max_negatives": -1}, "max_negatives"),
        ({"max_negatives": 1.5}, "max_negatives"),
    ],
)
def test_objective_refuses(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        objective(**changes)


@pytest.mark.parametrize(
    "goal, negatives, readout",
    [
        (SFT, False, False),
        (objective(), True, True),
        (objective(beta=0.0, distillation_weight=0.5), False, True),
        (objective(beta=0.0, reward_weight=0.5), True, True),
        (objective(beta=0.0, reward_weight=0.5, reward_tokens="continuations"), False, False),
        (objective(negatives_from="random"), True, True),
        (objective(negatives_from="last_layer"), True, False),
    ],
)
def test_what_a_goal_needs(goal: Any, negatives: bool, readout: bool) -> None:
    assert (goal.needs_negatives, goal.needs_readout) == (negatives, readout)


def test_terms_are_weighed_by_name() -> None:
    """1 + 2 * 10 + 4 * 100, the counts left out; and the sums leave the operation in this order."""
    names = "preference distillation reward num_negatives num_rows_without_negative"
    assert STATS == tuple(names.split())
    sums = TermSums(*torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    assert weigh(sums, objective(distillation_weight=2.0, reward_weight=4.0)).item() == 421.0
