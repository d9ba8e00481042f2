"""Settings in words."""

from __future__ import annotations

import pytest

from ilrec.config.described import changed_settings, defaults, objective_lines
from ilrec.config.sections import SECTIONS, ObjectiveConfig


def test_only_what_differs_is_told_and_no_place():
    settings = defaults() | {"beta": 0.1, "data": "/somewhere", "of another version": 3}
    assert changed_settings(settings) == {"beta": 0.1, "of another version": 3}
    assert changed_settings(defaults()) == {}


def test_defaults_are_those_of_the_sections():
    assert defaults()["alpha"] == SECTIONS["objective"]().alpha


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "plain cross-entropy"),
        (
            {"beta": 0.2, "alpha": 0.1},
            "a token is a hard negative if the mean of the 4 layers below the last, read out by "
            "the final norm and the head, gives it at least 0.1 times the label's probability",
        ),
        (
            {"beta": 0.2, "threshold": "logit", "num_readout_layers": 1},
            "if the layer below the last one, read out by the final norm and the head, gives it a "
            "logit of at least 0.5 times the last layer's for the label",
        ),
        (
            {"beta": 0.2, "negative_tokens": "continuations", "max_negatives": 7},
            "it must be a token with which an item of the catalogue goes on at this place, and not "
            "the label; at most 7 of them count, the most probable",
        ),
        (
            {"beta": 0.2, "negatives_from": "last_layer"},
            "the last layer itself (an ablation) gives",
        ),
        (
            {"beta": 0.2, "negatives_from": "random"},
            "as many tokens are then drawn at random in their place",
        ),
        ({"distillation_weight": 0.3}, "preference: beta is 0, so this term is plain"),
        (
            {"distillation_weight": 0.3, "distillation_target": "per_layer"},
            "distillation (weight 0.3): each of the 4 layers below the last learns the "
            "distribution of the last layer",
        ),
        (
            {"reward_weight": 0.5, "sasrec": "S", "reward_temperature": 2},
            "reward (weight 0.5): a soft target over the hard negatives and the label, in "
            "proportion to SASRec's probability of the items that go on so, to the power 1 / 2",
        ),
    ],
)
def test_the_objective_in_words(fields, words):
    assert words in "\n".join(objective_lines(ObjectiveConfig(**fields)))


def test_negatives_are_told_only_where_a_term_looks_at_them():
    only_distilled = objective_lines(ObjectiveConfig(distillation_weight=1))
    assert not any("hard negative" in line for line in only_distilled)
