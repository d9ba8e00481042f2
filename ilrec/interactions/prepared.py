"""A prepared data directory: `ilrec prepare` writes it, and every rank memory-maps it,
whatever its size.

    users.arrow     user_id: large_string
                    items: large_list<int32>, item numbers, oldest first
                    times: large_list<int64>, when, in seconds since 1970; not there if unknown
    items.arrow     item_id: large_string
                    title: large_string, "" if there is none
                    Row r is item number r.
    dataset.json    format, name, fingerprint, counts, and how the data was made

`datasets.Dataset.from_file` opens the .arrow files as well (arrow_files.py).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilrec.config.settings import KINDS
from ilrec.errors import InputError
from ilrec.files.digests import fingerprint_of
from ilrec.files.outputs import check_new, write_text
from ilrec.files.reading import read_json
from ilrec.interactions.arrow_files import (
    ArrowStrings,
    list_column,
    read_table,
    rows_of_column,
    text_column,
    write_table,
)
from ilrec.interactions.dataset import InteractionDataset

USERS, ITEMS, MANIFEST = "users.arrow", "items.arrow", "dataset.json"
FORMAT = 1
# The fields of the manifest that are read; the others are for people.
FACTS = {"name": str, "fingerprint": str, "num_dropped_users": int}
AGAIN = "make the directory again with `ilrec prepare`"


def write_prepared(
    dataset: InteractionDataset, directory: str | Path, about: dict[str, Any]
) -> None:
    """Write the whole directory, or nothing. about: how the data was made, for dataset.json.

    Raises InputError if `directory` exists and is not empty.
    """
    with new_directory(Path(directory)) as beside:
        users = {
            "user_id": text_column(dataset.user_ids),
            "items": list_column(dataset.sequences),
        }
        if dataset.times is not None:
            users["times"] = list_column(dataset.times)
        write_table(beside / USERS, users)
        titles = dataset.titles if dataset.titles is not None else [""] * dataset.num_items
        write_table(
            beside / ITEMS,
            {"item_id": text_column(dataset.item_ids), "title": text_column(titles)},
        )
        manifest = {
            "format": FORMAT,
            "name": dataset.name,
            "fingerprint": fingerprint_of((beside / USERS, beside / ITEMS)),
            "num_users": dataset.num_users,
            "num_items": dataset.num_items,
            "num_interactions": int(dataset.sequences.lengths.sum()),
            "num_dropped_users": dataset.num_dropped_users,
            "about": about,
        }
        write_text(beside / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory to fill. It becomes `directory` if the block ends well, and is removed
    if it does not.

    Raises InputError as check_new does.
    """
    check_new(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # It lies beside `directory`, because only within one file system a rename is one step.
    beside = Path(
        tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent)
    )
    try:
        # mkdtemp makes a directory that only its owner can read.
        beside.chmod(0o755)
        yield beside
        beside.replace(directory)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_prepared(directory: str | Path) -> InteractionDataset:
    """The data that write_prepared wrote, memory-mapped.

    Raises InputError if it is incomplete or damaged.
    """
    directory = Path(directory)
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{directory / MANIFEST}: expected format {FORMAT}; {AGAIN}")
    for fact, kind in FACTS.items():
        # type() and not isinstance(): true is an int in Python, but no number of users.
        if type(manifest.get(fact)) is not kind:
            raise InputError(
                f"{directory / MANIFEST}: {fact}: expected {KINDS[kind]}, "
                f"got {manifest.get(fact)!r:.80}; {AGAIN}"
            )

    # The files are hashed at every start: a file of another preparation would have the right form
    # and other numbers.
    users = read_table(directory / USERS, AGAIN)
    items = read_table(directory / ITEMS, AGAIN)
    if fingerprint_of((directory / USERS, directory / ITEMS)) != manifest["fingerprint"]:
        raise InputError(
            f"{directory}: {USERS} and {ITEMS} are not those that {MANIFEST} was written with; "
            f"{AGAIN}"
        )

    titles = ArrowStrings(items["title"])
    return InteractionDataset(
        name=manifest["name"],
        user_ids=ArrowStrings(users["user_id"]),
        item_ids=ArrowStrings(items["item_id"]),
        sequences=rows_of_column(users["items"]),
        titles=titles if any(titles) else None,
        num_dropped_users=manifest["num_dropped_users"],
        fingerprint=manifest["fingerprint"],
        # Directories of earlier versions have no times.
        times=rows_of_column(users["times"]) if "times" in users.schema.names else None,
    )
