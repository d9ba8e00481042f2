"""Where results go: tried before the work that makes them, and replaced whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ilrec.errors import InputError

# Written and flushed by a trial: a full disk still takes an empty file. One block of most file
# systems.
TRIAL_BYTES = 4096


def check_file(path: str | Path) -> None:
    """InputError where no file can be written at `path`; one that is there may be replaced. Leaves
    nothing behind."""
    path = Path(path)
    if (
        os.path.exists(path) and not path.is_file()
    ):  # renaming onto a device would replace the device
        kind = "a directory" if path.is_dir() else "no regular file"
        raise InputError(
            f"{path}: cannot be written: it is {kind}; expected the name of a file, new or to be replaced"
        )
    _try_to_write(path, path.parent)


def check_directory(path: str | Path) -> None:
    """InputError where no files can be written in a directory at `path`, there or not. Leaves
    nothing behind."""
    path = Path(path)
    if os.path.exists(path) and not path.is_dir():
        raise InputError(
            f"{path}: cannot be written: it is a file, expected a directory, new or there already; name another"
        )
    _try_to_write(path, path)


def check_new(directory: str | Path) -> None:
    """As check_directory; InputError also where `directory` exists and is not empty."""
    directory = Path(directory)
    if os.path.exists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(
            f"{directory}: exists already; expected a new or an empty directory: remove it or name another"
        )
    check_directory(directory)


def _try_to_write(path: Path, folder: Path) -> None:
    """A file is really written in `folder`, or in the nearest folder above it that exists, and
    removed.

    No folder is made: jobs that start together would take each other's away. The trial's name is
        longer than the result's.
    """
    folder = folder.absolute()
    nearest = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    try:
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=f".{path.name}.") as trial:
            trial.write(bytes(TRIAL_BYTES))
            trial.flush()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: nothing can be made in {nearest} ({_reason(error)}); name another place, or mend "
            "this one"
        ) from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A name beside `path`, with its suffix, to write to: it becomes `path` when the block ends
    well, and goes when it does not.

    A reader never sees half a file, and one that was there stays until then. Raises InputError
    where the system refuses to write.
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


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # its folder cannot be written any more: the error that led here has been said
        pass


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def write_text(path: str | Path, text: str) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
