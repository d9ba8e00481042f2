"""The settings of a run, resolved and checked: defaults < the YAML recipe < the command line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ilrec.config.command_line import as_pairs
from ilrec.config.other_names import ANSWERS
from ilrec.config.sections import SECTIONS, TrainConfig
from ilrec.config.settings import nearest, read_field
from ilrec.config.training_arguments import (
    known_fields,
    read_training_argument,
    require_effect,
)
from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.plain_yaml import to_yaml
from ilrec.files.reading import read_yaml


def parse_overrides(words: list[str]) -> dict[str, str]:
    """{field: text} from `--field value` and `--field=value`.

    The text is read later, where the field's type is known (settings.py).
    """
    pairs = [pair.removeprefix("--") for pair in as_pairs(words)]
    return dict(pair.split("=", 1) for pair in pairs)


def load_config(path: str | Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Defaults < the recipe at `path` < overrides, checked.

    Raises InputError, which names the place (file or command line) and the field.
    """
    recipe = read_yaml(path) if path else {}
    # A recipe may come from anybody. Only the person at the command line may allow foreign code.
    if recipe.get("trust_remote_code") and "trust_remote_code" not in overrides:
        raise InputError(
            f"{path}: trust_remote_code: a recipe must not decide that code from elsewhere is run; "
            "remove it and give --trust_remote_code true, if you trust the model's authors"
        )

    # {field: (value, where it was given)}, so that every later message can name the place.
    given = {name: (value, str(path)) for name, value in recipe.items()}
    given |= {name: (value, "command line") for name, value in overrides.items()}

    # Fields are flat for the user and in sections for the code. Each goes to its own section.
    section_of: dict[str, str] = {}
    for section, cls in SECTIONS.items():
        section_of |= {field.name: section for field in dataclasses.fields(cls)}
    of_section: dict[str, dict[str, tuple[Any, str]]] = {section: {} for section in SECTIONS}
    others: dict[str, tuple[Any, str]] = {}
    for name, value_and_source in given.items():
        belongs = of_section[section_of[name]] if name in section_of else others
        belongs[name] = value_and_source

    sections = {name: build_section(cls, of_section[name]) for name, cls in SECTIONS.items()}
    config = TrainConfig(**sections, training_arguments=_read_others(others, section_of))
    source = str(path) if path else "command line"
    _require_places(config, source)
    with _naming(source):
        require_effect(config)
    return config


def _read_others(given: Mapping[str, tuple[Any, str]], declared: Iterable[str]) -> dict[str, Any]:
    """{field of transformers.TrainingArguments: value} from {name: (value, where it was given)}.

    declared: the names that do have a section, for advice. Raises InputError for a field of which
    this trainer decides itself, and for an unknown name.
    """
    values = {}
    for name, (value, source) in given.items():
        if name in ANSWERS:
            raise InputError(f"{source}: {name}: no field of a training run: {ANSWERS[name]}")
        if name not in known_fields():
            known = {*declared, *known_fields()} - ANSWERS.keys()
            raise InputError(f"{source}: unknown field {name!r}{nearest(name, known)}")
        with _naming(source):
            values[name] = read_training_argument(name, value)
    return values


def build_section(cls: type, values: Mapping[str, tuple[Any, str]]) -> Any:
    """One dataclass of settings from {field: (value, where it was given)}.

    Each value is checked alone, then all of them together. Raises InputError, which names the place
    and the field.
    """
    checked = {}
    for name, (value, source) in values.items():
        with _naming(source):
            checked[name] = read_field(cls, name, value)
    sources = sorted({source for _, source in values.values()})
    with _naming(" and ".join(sources) or "defaults"):
        return cls(**checked)


def write_yaml(path: str | Path, config: TrainConfig) -> None:
    """Write the resolved settings, so that load_config reads the same ones again."""
    write_text(path, to_yaml(config.flat()))


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Inside, an InputError about a field also names the place where the field was given."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _require_places(config: TrainConfig, source: str) -> None:
    """Raises InputError if data, output_dir or the model to start from is not set."""
    for section, name, meaning in (
        (config.data, "data", "the data directory"),
        (config.training, "output_dir", "the run directory"),
    ):
        if not getattr(section, name):
            raise InputError(
                f"{source}: {name}: not set; expected {meaning}: add `{name}: PATH` or "
                f"--{name} PATH"
            )
    if not config.model.model and config.model.init is None:
        raise InputError(
            f"{source}: model: not set; name a model (--model PATH) or give init: {{...}} for one "
            "from scratch"
        )
