"""Settings in words, for people who read about a run: model cards and reports.

A run's settings come as one flat mapping, as config.yaml in its directory holds them. Fields that
this version does not know, or that the file does not have, are fine: other versions write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ilrec.config.sections import SECTIONS, ObjectiveConfig

# Where things lie on a machine, and how a run was started again. They do not decide a result.
PLACES = ("model", "base", "data", "semantic_ids", "sasrec", "output_dir", "resume")
# What may be a hard negative, for each value of negative_tokens.
CANDIDATES = {
    "all": "any token of the vocabulary",
    "items": "a token that occurs in some item",
    "continuations": "a token with which an item of the catalogue goes on at this place",
}


def defaults() -> dict[str, Any]:
    """{field: default} of all settings of training."""
    found: dict[str, Any] = {}
    for section in SECTIONS.values():
        found |= dataclasses.asdict(section())
    return found


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not at their default, without PLACES, in their order."""
    usual = defaults()
    changed = {}
    for name, value in settings.items():
        if name not in PLACES and value != usual.get(name):
            changed[name] = value
    return changed


def is_cross_entropy(settings: Mapping[str, Any]) -> bool:
    """Whether the objective is plain cross-entropy: all weights are 0."""
    of = defaults() | dict(settings)
    return not (of["beta"] or of["distillation_weight"] or of["reward_weight"])


def objective_of(settings: Mapping[str, Any]) -> ObjectiveConfig:
    """The objective's fields among the settings; those that are not there have their default."""
    known = ObjectiveConfig.__dataclass_fields__
    return ObjectiveConfig(**{name: settings[name] for name in settings if name in known})


def objective_lines(objective: ObjectiveConfig) -> list[str]:
    """The terms of the loss, one text each (equations: docs/method.md)."""
    if not (objective.beta or objective.distillation_weight or objective.reward_weight):
        return ["plain cross-entropy: beta, distillation_weight and reward_weight are 0"]
    lines = []
    if objective.vocabulary_objective().needs_negatives:
        lines += _negative_lines(objective)
    if objective.beta:
        lines.append(
            f"preference (beta {objective.beta:g}): the cross-entropy, after the last layer's "
            f"logits of the hard negatives are raised by {objective.beta:g} x weight x their size"
        )
    else:
        lines.append("preference: beta is 0, so this term is plain cross-entropy")
    if objective.distillation_weight:
        learner = {
            "ensemble": f"{_layers(objective)} together learn",
            "per_layer": f"each of {_layers(objective)} learns",
        }[objective.distillation_target]
        lines.append(
            f"distillation (weight {objective.distillation_weight:g}): {learner} the distribution "
            "of the last layer"
        )
    if objective.reward_weight:
        lines.append(_reward_line(objective))
    return lines


def _layers(objective: ObjectiveConfig) -> str:
    number = objective.num_readout_layers
    return "the layer below the last one" if number == 1 else f"the {number} layers below the last"


def _negative_lines(objective: ObjectiveConfig) -> list[str]:
    proposer = f"the mean of {_layers(objective)}, read out by the final norm and the head,"
    if objective.num_readout_layers == 1:
        proposer = f"{_layers(objective)}, read out by the final norm and the head,"
    if objective.negatives_from == "last_layer":
        proposer = "the last layer itself (an ablation)"
    if objective.threshold == "probability":
        rule = f"gives it at least {objective.alpha:g} times the label's probability"
    else:
        rule = (
            f"gives it a logit of at least {objective.alpha:g} times the last layer's for the label"
        )
    line = f"a token is a hard negative if {proposer} {rule}"
    if objective.negatives_from == "random":
        line += "; as many tokens are then drawn at random in their place (an ablation)"
    limit = ""
    if objective.max_negatives:
        limit = f"; at most {objective.max_negatives} of them count, the most probable"
    return [
        line,
        f"it must be {CANDIDATES[objective.negative_tokens]}, and not the label{limit}",
        f"hard negatives are weighted by that layer's softmax at temperature "
        f"{objective.weight_temperature:g}",
    ]


def _reward_line(objective: ObjectiveConfig) -> str:
    places = {
        "negatives": "the hard negatives and the label",
        "continuations": "all tokens with which an item goes on",
    }[objective.reward_tokens]
    return (
        f"reward (weight {objective.reward_weight:g}): a soft target over {places}, in proportion "
        f"to SASRec's probability of the items that go on so, to the power "
        f"1 / {objective.reward_temperature:g}"
    )
