"""What every command line keeps to: nothing is abbreviated, the last word on a field counts, and
text arrives to the letter."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ilrec.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations. Of a flag that is there twice the last counts, so that a
    script's own may be overridden."""

    def __init__(self, description: str | None, epilog: str | None = None) -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_pairs(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Its own flags, and all other `--field=value` pairs, for parse_overrides. Each of them has
        a value."""
        return self.parse_known_args(as_pairs(words))


def as_pairs(words: Sequence[str]) -> list[str]:
    """`--field value` and `--field=value`, each as the one word `--field=value`. -h and --help come
    back alone.

    So argparse takes no value for a flag. The last value of a field counts. InputError where a flag
    has no value, and for a word that belongs to none.
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
                raise InputError(
                    f"command line: {name} has no value; write {name} VALUE, or {name}=VALUE if it begins with --"
                )
        pairs[name] = value
    return [f"{name}={value}" for name, value in pairs.items()]
