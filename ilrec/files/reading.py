"""Small text files that are read whole. A fault is named by its file, line and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.plain_json import parse_json
from ilrec.files.plain_yaml import parse_yaml


def read_text(path: str | Path, mend: str = "") -> str:
    """A file's text: UTF-8, with or without a byte order mark.

    Raises InputError if it cannot be read. mend: what the user can do if the file is missing.
    """
    try:
        # This encoding drops the mark that some editors put at the beginning of a file.
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        advice = f"; {mend}" if mend else ""
        raise InputError(f"{path}: no such file{advice}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: str | Path, mend: str = "") -> Any:
    """The content of a JSON file.

    Raises InputError, with file, line and column, if it is missing or malformed. mend: what the
    user can do if the file is missing.
    """
    return _parsed(parse_json, path, mend)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of `field: value` lines; {} for an empty file.

    Raises InputError, with file, line and column, if it is missing or malformed.
    """
    content = _parsed(parse_yaml, path, "expected a YAML file of `field: value` lines")
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: expected `field: value` lines, got {content!r:.80}")
    return content


def _parsed(parse: Callable[[str], Any], path: str | Path, mend: str) -> Any:
    text = read_text(path, mend)
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(f"{path}:{error}") from None
