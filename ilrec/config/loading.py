"""Defaults < the YAML recipe < the command line: the settings of a run, resolved and checked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ilrec.config.command_line import as_pairs
from ilrec.config.sections import SECTIONS, TrainConfig
from ilrec.config.settings import nearest, read_field
from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.plain_yaml import to_yaml
from ilrec.files.reading import read_yaml


def parse_overrides(words: list[str]) -> dict[str, str]:
    """{field: text} of `--field value` and `--field=value`. The text is read where the field's type
    is known (settings.py)."""
    return dict(pair[2:].split("=", 1) for pair in as_pairs(words))


def load_config(path: str | Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Defaults < recipe < command line, checked. Raises InputError naming the place and the
    field."""
    merged: dict[str, tuple[Any, str]] = {}
    for values, source in (
        (read_yaml(path) if path else {}, str(path)),
        (overrides, "command line"),
    ):
        merged.update({name: (value, source) for name, value in values.items()})
    if merged.get("trust_remote_code", (False, ""))[0] and "trust_remote_code" not in overrides:
        raise InputError(
            f"{path}: trust_remote_code: a recipe must not decide that code from elsewhere is run; remove it and give "
            "--trust_remote_code true, if you trust the model's authors"
        )
    owners = {f.name: section for section, cls in SECTIONS.items() for f in dataclasses.fields(cls)}
    for name, (_, source) in merged.items():
        if name not in owners:
            raise InputError(f"{source}: unknown field {name!r}{nearest(name, owners)}")
    sections = {}
    for section, cls in SECTIONS.items():
        mine = {name: pair for name, pair in merged.items() if owners[name] == section}
        sections[section] = build_section(cls, mine)
    config = TrainConfig(**sections)
    _check_together(config, str(path) if path else "command line")
    return config


def build_section(cls: type, values: Mapping[str, tuple[Any, str]]) -> Any:
    """One dataclass from {field: (value, where it was given)}, checked: each value, then all
    together."""
    checked = {}
    for name, (value, source) in values.items():
        with _said_of(source):
            checked[name] = read_field(cls, name, value)
    with _said_of(" and ".join(sorted({source for _, source in values.values()})) or "defaults"):
        return cls(**checked)


@contextlib.contextmanager
def _said_of(source: str) -> Iterator[None]:
    """Inside, an InputError about a field also says where the field was given."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _check_together(config: TrainConfig, source: str) -> None:
    for section, name, meaning in (
        (config.data, "data", "the data directory"),
        (config.training, "output_dir", "the run directory"),
    ):
        if not getattr(section, name):
            raise InputError(
                f"{source}: {name}: not set; expected {meaning}: add `{name}: PATH` or --{name} PATH"
            )
    if not config.model.model and config.model.init is None:
        raise InputError(
            f"{source}: model: not set; name a model (--model PATH) or give init: {{...}} for one from scratch"
        )


def write_yaml(path: str | Path, config: TrainConfig) -> None:
    """The resolved settings, readable again by load_config."""
    write_text(path, to_yaml(config.flat()))
