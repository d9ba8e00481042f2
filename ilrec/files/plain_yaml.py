"""YAML as people mean it: `no` and `on` are words, 1e-4 is a number, and 010, 12:30 and 2024-01-01
are text. No key may be there twice.

PyYAML follows YAML 1.1: it reads `no` as false, 010 as 8, 12:30 as 750 and 1e-4 as text, and keeps
the last of two equal keys without a word. This file follows the core schema of YAML 1.2, and a
whole number has no leading zero. Text that a reader of either version would take for something else
is written in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

WHOLE_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
SIGNS_AND_DIGITS = list("-+.0123456789")
# PyYAML writes these characters as they are, and turns them into a space when it reads them.
# Between double quotes it escapes them.
LINE_BREAKS = "\x85\u2028\u2029\ufeff"
# (tag, the texts that have it, the characters that they may begin with). The first that fits wins.
CORE_SCHEMA = (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", WHOLE_NUMBER, SIGNS_AND_DIGITS),
    ("float", NUMBER, SIGNS_AND_DIGITS),
    ("float", re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), SIGNS_AND_DIGITS),
    ("merge", re.compile(r"<<"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    # Empty, so that none of the YAML 1.1 rules of the parent class apply.
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
    """Keeps the YAML 1.1 rules of the parent class and adds those of 1.2.

    So text is quoted if either version would read it as something else.
    """

    def represent_text(self, text: str) -> yaml.Node:
        style = '"' if any(character in LINE_BREAKS for character in text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _tag, _pattern, _first in CORE_SCHEMA:
    _whole_text = re.compile(f"(?:{_pattern.pattern})\\Z")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole_text, _first)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises ValueError. Its text is `line:column: reason`, or ` reason` where no place is known.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.line + 1}:{mark.column + 1}:" if mark else ""
        raise ValueError(f"{place} not valid YAML: {error.problem}") from None
    except RecursionError:
        raise ValueError(" nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        # A control character, or a number of thousands of digits. The library's message may have
        # several lines, and advice for programmers after `;`.
        reason = " ".join(str(error).partition(";")[0].split())
        raise ValueError(f" not valid YAML: {reason}") from None


def to_yaml(content: Any) -> str:
    """Text that parse_yaml reads as `content` again, with the keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
