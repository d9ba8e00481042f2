"""What every command line keeps to: nothing is abbreviated, nothing is there twice, and text arrives to the letter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ilrec.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """argparse, without abbreviations, and with an error where a flag is there twice: it would take the last without a word."""

    def __init__(self, description: str | None, epilog: str | None = None) -> None:
        super().__init__(description=description, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        self.register("action", None, _StoreOnce)

    def parse_pairs(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Its own flags, and all other `--field=value` pairs, for parse_overrides. Each of them has a value."""
        return self.parse_known_args(as_pairs(words))


class _StoreOnce(argparse.Action):
    is_given = False

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        if self.is_given:
            raise argparse.ArgumentError(self, "is there twice; keep one")
        self.is_given = True
        setattr(namespace, self.dest, values)


def as_pairs(words: Sequence[str]) -> list[str]:
    """`--field value` and `--field=value`, each as the one word `--field=value`. -h and --help come back alone.

    So argparse takes no value for a flag. InputError where a flag has no value or two values, and for a word that belongs to none.
    """
    pairs: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help"):
            return [word]
        name, equals, value = word.partition("=")
        if not name.startswith("--") or len(name) == 2:
            raise InputError(f"command line: expected --field value, got {word!r}")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise InputError(f"command line: {name} has no value; write {name} VALUE, or {name}=VALUE if it begins with --")
        if pairs.get(name, value) != value:
            raise InputError(f"command line: {name} is there twice: {pairs[name]!r} and {value!r}; keep one")
        pairs[name] = value
    return [f"{name}={value}" for name, value in pairs.items()]
