"""YAML as it is meant: `no` and `on` are words, 1e-4 is a number, 010, 12:30 and 2024-01-01 are
text, and no key is there twice.

PyYAML follows YAML 1.1, which reads `no` as false, 010 as 8, 12:30 as 750 and 1e-4 as text, and of
two equal keys keeps the last without a word. This is the core schema of YAML 1.2, where a whole
number has no leading zero. What is written is quoted wherever a reader of either version would take
it for something else.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

WHOLE_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
SIGNS_AND_DIGITS = list("-+.0123456789")
# PyYAML writes these as they are, and folds them into a space when it reads them; between double
# quotes it escapes them.
LINE_BREAKS = "\x85\u2028\u2029\ufeff"
# Tag, what is read as it, and the characters that it may begin with; the first one that fits
# decides.
CORE_SCHEMA = (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", WHOLE_NUMBER, SIGNS_AND_DIGITS),
    ("float", NUMBER, SIGNS_AND_DIGITS),
    ("float", re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), SIGNS_AND_DIGITS),
    ("merge", re.compile(r"<<"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is there twice; keep one", key.start_mark
                )
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """With the resolvers of YAML 1.1, which it brings, and those of 1.2."""

    def represent_text(self, text: str) -> yaml.Node:
        style = '"' if any(character in LINE_BREAKS for character in text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _tag, _pattern, _first in CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})\\Z"), _first
        )


def parse_yaml(text: str) -> Any:
    """Raises ValueError, its text `line:column: reason` where there is a place."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        place = (
            f"{error.problem_mark.line + 1}:{error.problem_mark.column + 1}:"
            if error.problem_mark
            else ""
        )
        raise ValueError(f"{place} not valid YAML: {error.problem}") from None
    except RecursionError:
        raise ValueError(" nested too deeply") from None
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # a control character, or a number of thousands of digits
        raise ValueError(
            f" not valid YAML: {' '.join(str(error).partition(';')[0].split())}"
        ) from None


def to_yaml(content: Any) -> str:
    """Text that parse_yaml reads as `content` again, in the order of its keys."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
