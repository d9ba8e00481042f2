"""Settings in words, for people who read about a run: model cards and reports.

A run's settings come as one flat mapping, as config.yaml in its directory holds them. Fields that
this version does not know, or that the file does not have, are fine: other versions write them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ilrec.config.sections import SECTIONS

# Where things lie on a machine, and how a run was started again. They do not decide a result.
PLACES = ("model", "base", "data", "semantic_ids", "sasrec", "output_dir", "resume")
NEGATIVES = {
    "all": "all tokens",
    "items": "tokens that occur in an item",
    "continuations": "tokens that continue an item of the catalogue",
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


def objective_in_words(settings: Mapping[str, Any]) -> list[str]:
    """What is optimised, one sentence for each term (docs/method.md has the equations)."""
    of = defaults() | dict(settings)
    if is_cross_entropy(of):
        return ["Plain cross-entropy of the next item's tokens (supervised fine-tuning)."]
    said = []
    if of["beta"]:
        said.append(
            "Cross-layer preference optimisation: cross-entropy in which hard negatives compete "
            f"with the label more strongly than they do by themselves (beta {of['beta']:g})."
        )
    else:
        said.append("Cross-entropy of the next item's tokens.")
    if of["beta"] or (of["reward_weight"] and of["reward_tokens"] == "negatives"):
        said.append(_negatives_in_words(of))
    if of["distillation_weight"]:
        said.append(
            f"Cross-layer preference distillation: the {of['num_readout_layers']} layers below the "
            f"last one learn from the last (weight {of['distillation_weight']:g})."
        )
    if of["reward_weight"]:
        tokens = "the negatives and the label"
        if of["reward_tokens"] == "continuations":
            tokens = "all tokens that continue an item"
        said.append(
            f"Collaborative reward: a SASRec model softens the target over {tokens} "
            f"(weight {of['reward_weight']:g})."
        )
    return said


def _negatives_in_words(of: Mapping[str, Any]) -> str:
    layers = f"the mean of the {of['num_readout_layers']} layers below the last one"
    if of["negatives_from"] == "last_layer":
        layers = "the last layer itself"
    quantity = "probability" if of["threshold"] == "probability" else "logit"
    rule = f"to which {layers} gives at least {of['alpha']:g} times the label's {quantity}"
    candidates = NEGATIVES[of["negative_tokens"]]
    if of["negatives_from"] == "random":
        candidates += ", drawn at random, as many as there are"
    most = f", {of['max_negatives']} of them at most" if of["max_negatives"] else ""
    return f"Hard negatives: {candidates} {rule}{most}."
