"""Fields of transformers.TrainingArguments that no section declares: optim, adam_beta2, run_name.

A recipe and a command line take them under their own names. Their types and choices are read from
transformers' own dataclass. Those that this trainer must decide itself are refused with the reason
(other_names.py). transformers is imported only when such a field, or an unknown one, is met,
because that takes seconds.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import types
import typing
from collections.abc import Mapping
from typing import Any

from ilrec.config.sections import TrainConfig
from ilrec.config.settings import KINDS, Domain, read_within, require

# The upload of final/. ilrec/training/hub.py does it, and not the Trainer.
HUB_FIELDS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
# These optimizers need the layers of a model that is whole on one rank.
LAYER_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")


@functools.cache
def known_fields() -> Mapping[str, tuple[Any, Domain]]:
    """{field of TrainingArguments: (its type, as read_within takes it, and its domain)}"""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    known = {}
    for field in dataclasses.fields(TrainingArguments):
        choices = field.metadata.get("choices") or ()
        known[field.name] = _readable(hints[field.name], tuple(choices))
    return known


def read_training_argument(name: str, value: Any) -> Any:
    """The value in its field's type. Raises InputError, which begins with the name."""
    hint, domain = known_fields()[name]
    read = read_within(name, value, hint, domain)
    require((name, read) != ("save_strategy", "best"), name, read, "no, steps or epoch")
    takes_layers = name == "optim" and read.startswith(LAYER_OPTIMIZERS)
    require(not takes_layers, name, read, "one that does not take the model's layers apart")
    return read


def require_effect(config: TrainConfig) -> None:
    """Raises InputError for a field that would have no effect, or none but an error later on, with
    the other settings."""
    given = config.training_arguments
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        require(
            not given.get(name) or config.training.dataloader_num_workers > 0,
            name,
            given.get(name),
            "dataloader_num_workers above 0 with it",
        )
    require(
        not given.get("dataloader_drop_last") or config.data.max_tokens_per_batch == 0,
        "dataloader_drop_last",
        True,
        "false with max_tokens_per_batch, whose batches drop and repeat nothing",
    )
    for name in HUB_FIELDS:
        require(
            not given.get(name) or given.get("push_to_hub", False),
            name,
            given.get(name),
            "push_to_hub: true with it",
        )
    for name in ("eval_on_start", "eval_delay"):
        require(
            not given.get(name) or config.evaluation.eval_strategy != "no",
            name,
            given.get(name),
            "eval_strategy: steps or epoch with it",
        )
    require(
        not given.get("eval_on_start") or not config.evaluation.save_best,
        "eval_on_start",
        True,
        "false with save_best: before the first step there is no checkpoint to keep",
    )


def _readable(hint: Any, choices: tuple[Any, ...]) -> tuple[Any, Domain]:
    """A type hint as settings.py reads them: a union of plain types, and the choices of an enum.

    A mapping may be text for transformers' own command line (JSON, or the name of a file). Here it
    is a mapping.
    """
    kinds: list[type] = []
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if is_union else (hint,):
        kind = typing.get_origin(option) or option
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            choices = tuple(member.value for member in kind)
            kind = str
        if kind in KINDS and kind not in kinds:
            kinds.append(kind)
    if dict in kinds and str in kinds:
        kinds.remove(str)
    return functools.reduce(operator.or_, kinds), Domain(choices)
