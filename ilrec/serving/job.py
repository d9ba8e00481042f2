"""Recommendations for many users: in shards, which the processes share and which are not made
twice.

    OUTPUT.parts/settings.json     what decides the lists; a job with other settings is refused
    OUTPUT.parts/histories.arrow   the histories of --histories FILE, read once for all processes
    OUTPUT.parts/00000.jsonl       whole shards; a job that died goes on without them
    OUTPUT                         all shards in order; then OUTPUT.parts is removed
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_json
from ilrec.processes import rank, world_size
from ilrec.ranking.case_lists import SECONDS_BETWEEN_PROGRESS, progress
from ilrec.serving.histories import Histories
from ilrec.serving.lists import merge_lists, write_lists
from ilrec.serving.recommender import Recommender, Request
from ilrec.training.run_directory import RunLock
from ilrec.training.together import agreed, barrier

logger = logging.getLogger("ilrec.recommend")

# A shard has as many users as this, or fewer: 2,048 are minutes of work at most, and ten million
# users make five thousand files. Few users make shards of 64, so that several processes have work.
LEAST_USERS, MOST_USERS = 64, 2048
WANTED_SHARDS = 64
SETTINGS, HISTORIES = "settings.json", "histories.arrow"


class Job:
    """The directory of one job, beside its output. Every process makes one."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.parts = Path(f"{output}.parts")
        self.lock: RunLock | None = None

    def begin(
        self, settings: Mapping[str, Any], read: Callable[[], Histories] | None = None
    ) -> None:
        """Start, or go on with what lies there. Every process calls it.

        settings: what decides the lists, as JSON. read: gives the histories of a file. It is called
        on process 0, at the start only, and `kept_histories` has what it returned.
        Raises InputError, on every process, if the directory has shards of a job with other
        settings, if another job is at work in it, and what `read` raises.
        """
        agreed(lambda: self._begin(dict(settings), read))

    def kept_histories(self) -> Histories:
        """What `read` returned, memory-mapped."""
        return Histories.read(self.parts / HISTORIES)

    def _begin(self, settings: dict[str, Any], read: Callable[[], Histories] | None) -> None:
        path = self.parts / SETTINGS
        begun = read_json(path) if path.exists() else None
        for name, value in settings.items():
            if begun is not None and begun.get(name) != value and self._has_shards():
                raise InputError(
                    f"{self.parts}: holds shards of a job with another {name} "
                    f"({begun.get(name)!s:.60}, now {value!s:.60}); give the same again to go on, "
                    "or remove the directory to begin anew"
                )
        self.lock = RunLock(self.parts)
        if begun == settings:
            return
        path.unlink(missing_ok=True)
        try:
            if read:
                read().write(self.parts / HISTORIES)
        except BaseException:
            # Nothing is left of a job that could not begin.
            shutil.rmtree(self.parts)
            raise
        # Written last: with this file, the histories are whole.
        write_text(path, json.dumps(settings, indent=2) + "\n")

    def _has_shards(self) -> bool:
        return any(self.parts.glob(f"[0-9]*{self.output.suffix}"))

    def run(
        self, recommender: Recommender, request: Request, histories: Histories, batch_size: int
    ) -> None:
        """Make the shards that are missing, and the output of all of them."""
        size = shard_size(len(histories))
        starts = {self._shard(begin // size): begin for begin in range(0, len(histories), size)}
        missing: list[Path] = agreed(lambda: [path for path in starts if not path.exists()])
        if rank() == 0 and len(missing) < len(starts):
            logger.info("%d of %d shards are done", len(starts) - len(missing), len(starts))
        mine = missing[rank() :: world_size()]
        ends = {path: min(starts[path] + size, len(histories)) for path in missing}
        report = _Progress(
            sum(ends[path] - starts[path] for path in mine),
            sum(ends[path] - starts[path] for path in missing),
        )
        for path in mine:
            users = slice(starts[path], ends[path])
            rows = list(histories.rows[users])
            lists = recommender.lists(rows, request, batch_size, report)
            write_lists(path, histories.users[users], lists)
            report.add_shard(len(rows))
        barrier()
        agreed(lambda: self._finish(list(starts)))

    def _shard(self, number: int) -> Path:
        return self.parts / f"{number:05}{self.output.suffix}"

    def _finish(self, shards: list[Path]) -> None:
        merge_lists(shards, self.output)
        shutil.rmtree(self.parts)


def shard_size(num_users: int) -> int:
    """Users of a shard. It follows from their number alone, so that a job can go on with another
    number of processes."""
    return min(max(math.ceil(num_users / WANTED_SHARDS), LEAST_USERS), MOST_USERS)


class _Progress:
    """Logs how far the job is, on process 0. Called with the users done of the current shard."""

    def __init__(self, num_mine: int, num_users: int) -> None:
        self.num_mine = num_mine
        self.num_users = num_users
        self.num_before = 0
        self.started = self.reported = time.monotonic()

    def add_shard(self, num_users: int) -> None:
        self.num_before += num_users

    def __call__(self, num_done: int) -> None:
        now = time.monotonic()
        if rank() == 0 and now - self.reported > SECONDS_BETWEEN_PROGRESS:
            self.reported = now
            done = self.num_before + num_done
            logger.info("%s", progress(done, self.num_mine, self.num_users, now - self.started))
