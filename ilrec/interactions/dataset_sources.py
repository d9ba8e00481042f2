"""Interactions from a source that the library `datasets` reads: a name on the hub, a directory of
Parquet, CSV or JSON files, or a directory that `save_to_disk` wrote.

What `load_dataset` reads is streamed: nothing is held or copied into a cache, and a source larger
than the disk is fine. What `save_to_disk` wrote is memory-mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ilrec.errors import InputError

# A file of each kind of directory that save_to_disk writes.
SAVED_DATASET = "state.json"
SAVED_SPLITS = "dataset_dict.json"


@dataclass(frozen=True)
class DatasetSource:
    """source: a hub name or a directory. config: one of the source's configurations, "" for its
    default. split: of those that the source has; a single saved Dataset has none to choose from."""

    source: str
    config: str = ""
    split: str = "train"

    @property
    def name(self) -> str:
        return Path(self.source).name

    def __str__(self) -> str:
        return f"dataset {self.source}"

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """Tables of at most so many rows, in the source's order. Raises InputError if the library
        cannot open the source, or cannot read on."""
        data = self._reading(self._open)
        tables = iter(data.with_format("arrow").iter(batch_size=rows))
        while True:
            table = self._reading(lambda: next(tables, None))
            if table is None:
                return
            yield table

    def _open(self) -> Any:
        # Takes a second, and most imports do not need it.
        import datasets

        directory = Path(self.source)
        is_split = (directory / SAVED_SPLITS).exists()
        if not is_split and not (directory / SAVED_DATASET).exists():
            return datasets.load_dataset(
                self.source, self.config or None, split=self.split, streaming=True
            )
        data: Any = datasets.load_from_disk(self.source)
        if is_split and self.split not in data:
            raise ValueError(f"unknown split {self.split!r}; it has {', '.join(data)}")
        return data[self.split] if is_split else data

    def _reading(self, read: Callable[[], Any]) -> Any:
        """What `read` returns. The errors below are what the library raises for a wrong name,
        configuration or split, for damaged files, and for a missing network."""
        try:
            return read()
        except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"--dataset {self.source}: the library datasets cannot read it ({reason}); "
                "expected a name on the hub, a directory of Parquet, CSV or JSON files, or what "
                "save_to_disk wrote, with --dataset_config and --dataset_split that it has"
            ) from None
