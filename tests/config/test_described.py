"""Settings in words."""

from __future__ import annotations

import re

import pytest

from ilrec.config.described import changed_settings, defaults, objective_in_words
from ilrec.config.sections import SECTIONS


def test_only_what_differs_is_told_and_no_place():
    settings = defaults() | {"beta": 0.1, "data": "/somewhere", "of another version": 3}
    assert changed_settings(settings) == {"beta": 0.1, "of another version": 3}
    assert changed_settings(defaults()) == {}


def test_defaults_are_those_of_the_sections():
    assert defaults()["alpha"] == SECTIONS["objective"]().alpha


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["Plain cross-entropy"]),
        ({"beta": 0.1}, ["preference optimisation", "mean of the 4 layers .* 0.5 times"]),
        ({"distillation_weight": 0.5}, ["^Cross-entropy of", "distillation: .*weight 0.5"]),
        (
            {"reward_weight": 0.3, "reward_tokens": "continuations"},
            ["^Cross-entropy of", "reward: .* all tokens that continue an item"],
        ),
        (
            {"beta": 1, "negatives_from": "last_layer", "threshold": "logit", "max_negatives": 9},
            ["preference", "the last layer itself gives .* label's logit, 9 of them at most"],
        ),
        (
            {"beta": 1, "negatives_from": "random"},
            ["preference", "all tokens, drawn at random, as many as"],
        ),
    ],
)
def test_each_term_has_a_sentence(settings, expected):
    said = objective_in_words(settings)
    assert len(said) == len(expected)
    for sentence, pattern in zip(said, expected, strict=True):
        assert re.search(pattern, sentence), sentence
        assert sentence.endswith(".")
