"""The rules of every command line in the project.

Nothing may be abbreviated. If a flag is given twice, the last one counts. A text value arrives
exactly as it was typed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Sequence
from typing import Any

from ilrec.config.settings import Domain, default_words, read_within, type_words
from ilrec.errors import InputError


class _ReadNumber(argparse.Action):
    """Reads the words after a flag as numbers within a domain. An action, not a `type`: argparse
    would put its own words in the place of the InputError of a `type`."""

    def __init__(self, *args: Any, kind: type, domain: Domain, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kind = kind
        self.domain = domain

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        flag = option_string or self.dest
        if isinstance(values, list):
            number: Any = [read_within(flag, value, self.kind, self.domain) for value in values]
        else:
            number = read_within(flag, values, self.kind, self.domain)
        setattr(namespace, self.dest, number)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Texts as they are, and the default of each flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_none = action.default in (None, "", False, argparse.SUPPRESS)
        return text if has_none or "default" in text else f"{text} (default: %(default)s)"


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations.

    The last of two equal flags counts, so that a user can override the flags of a job script.
    """

    def __init__(self, description: str | None, epilog: str | None = None) -> None:
        super().__init__(
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self._fields: set[str] = set()

    def add_fields(self, title: str, cls: type) -> None:
        """List the fields of a dataclass of settings in the help, under a title.

        They are not parsed here: parse_pairs hands them on, and the dataclass reads them.
        """
        self.usage = "%(prog)s [options] [--FIELD VALUE ...]"
        group = self.add_argument_group(title, inspect.cleandoc(cls.__doc__ or ""))
        for field in dataclasses.fields(cls):
            self._fields.add(f"--{field.name}")
            takes = type_words(cls, field.name)
            default = default_words(cls, field.name)
            text = f"{field.metadata['help']} ({takes}; default: {default})"
            group.add_argument(f"--{field.name}", metavar="VALUE", help=text.replace("%", "%%"))

    def add_number(
        self,
        flag: str,
        kind: type,
        *,
        at_least: float | None = None,
        above: float | None = None,
        **options: Any,
    ) -> None:
        """Add a flag whose value is a number (kind: int or float) within limits; options: those of
        add_argument. A wrong value raises InputError, which begins with the flag."""
        domain = Domain(at_least=at_least, above=above)
        self.add_argument(flag, action=_ReadNumber, kind=kind, domain=domain, **options)

    def parse_pairs(self, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """(this parser's own flags, all other flags as `--field=value`).

        The second part is for ilrec.config.loading.parse_overrides. Raises InputError if a flag has
        no value.
        """
        pairs = as_pairs(words)
        fields = [pair for pair in pairs if pair.partition("=")[0] in self._fields]
        own, unknown = self.parse_known_args([pair for pair in pairs if pair not in fields])
        return own, fields + unknown


def answer_help(parser: argparse.ArgumentParser) -> None:
    """Print the help and end the program, if its command line asks for help.

    For programs that import torch and transformers: called before that, the help takes a tenth of a
    second and not seven.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        parser.print_help()
        sys.exit(0)


def as_pairs(words: Sequence[str]) -> list[str]:
    """Each flag with its value as one word: `--field value` becomes `--field=value`.

    So argparse cannot take a value that begins with a dash for a flag. Only the last value of a
    field is kept. -h and --help come back alone. Raises InputError if a flag has no value, or if a
    word belongs to no flag.
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
            # `--` stands for a missing value, because no value may begin so.
            value = next(rest, "--")
            if value.startswith("--"):
                raise InputError(
                    f"command line: {name} has no value; write {name} VALUE, or {name}=VALUE if it "
                    "begins with --"
                )
        pairs[name] = value
    return [f"{name}={value}" for name, value in pairs.items()]
