"""Files that programs write: the place is tried before the work, and a file is replaced whole.

The `check_...` functions run first in every program. A run of hours must not end in the message
that its result cannot be written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilrec.errors import InputError

# A trial writes this much and flushes it, because a full disk still takes an empty file. It is one
# block of most file systems.
TRIAL_BYTES = 4096


def check_file(path: str | Path) -> None:
    """Raises InputError if no file can be written at `path`. A file may be there, to be replaced.

    Leaves nothing behind.
    """
    path = Path(path)
    # A device is refused: renaming a file onto /dev/null would replace the device.
    if os.path.exists(path) and not path.is_file():
        kind = "a directory" if path.is_dir() else "no regular file"
        raise InputError(
            f"{path}: cannot be written: it is {kind}; expected the name of a file, new or to be "
            "replaced"
        )
    _try_to_write(path, path.parent)


def check_directory(path: str | Path) -> None:
    """Raises InputError if no files can be written in a directory at `path`, which may be missing.

    Leaves nothing behind.
    """
    path = Path(path)
    if os.path.exists(path) and not path.is_dir():
        raise InputError(
            f"{path}: cannot be written: it is a file, expected a directory, new or there already; "
            "name another"
        )
    _try_to_write(path, path)


def check_new(directory: str | Path) -> None:
    """Like check_directory. Also raises InputError if `directory` exists and is not empty."""
    directory = Path(directory)
    is_free = not os.path.exists(directory)
    if not is_free and directory.is_dir():
        is_free = not any(directory.iterdir())
    if not is_free:
        raise InputError(
            f"{directory}: exists already; expected a new or an empty directory: remove it or name "
            "another"
        )
    check_directory(directory)


def _try_to_write(path: Path, folder: Path) -> None:
    """Write a real file in `folder`, or in the nearest folder above it that exists, and remove it.

    No folder is made, because jobs that start together would remove each other's. The trial file
    has a longer name than the result, so that a name which is too long is found here.
    """
    folder = folder.absolute()
    nearest = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    try:
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=f".{path.name}.") as trial:
            trial.write(bytes(TRIAL_BYTES))
            trial.flush()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: nothing can be made in {nearest} ({_reason(error)}); "
            "name another place, or mend this one"
        ) from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, with the same suffix, for the block to write to.

    The file becomes `path` when the block ends well, and is removed when it does not. So a reader
    never sees half a file, and an older file stays until the new one is complete. Raises InputError
    if the system refuses to write.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: could not be written: {_reason(error)}") from error
    finally:
        _remove(beside)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        # The folder cannot be written any more. The error that led here is already reported.
        pass


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
