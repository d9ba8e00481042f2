"""The run directory (output_dir): one run at a time, what it holds, what an earlier run left in it.

In the order of a run: RunLock keeps others out, set_aside moves an earlier run away,
write_run_directory writes what explains this run, and save_final writes final/ at its end.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from transformers import Trainer

from ilrec.config.loading import write_yaml
from ilrec.config.sections import TrainConfig
from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.processes import environment, rank
from ilrec.samples.task import ITEM_INDEX, RecommendationTask
from ilrec.training.checkpoints import (
    FINAL,
    checkpoint_at,
    full_disk_reported,
    list_checkpoints,
    publish,
    staging,
    step_of,
)
from ilrec.training.evaluation import Evaluated
from ilrec.training.manifest import MANIFEST, find_fault
from ilrec.training.metrics_log import METRICS_LOG
from ilrec.training.together import agreed

LOCK = ".lock"
# What a run leaves in its directory beside checkpoints.
LEFT_BY_A_RUN = (
    FINAL,
    "base",
    "config.yaml",
    "ds_config.json",
    "environment.json",
    ITEM_INDEX,
    METRICS_LOG,
    "tensorboard",
    "nonfinite",
)
# What a checkpoint holds beside the model: the files of the Trainer and of DeepSpeed.
STATE_OF_TRAINING = (
    "optimizer.*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "global_step*",
    "latest*",
    "zero_to_fp32.py",
    MANIFEST,
)
logger = logging.getLogger(__name__)


class RunLock:
    """One run at a time in an output directory.

    Rank 0 holds the lock until its process ends. The kernel gives it back, however that happens.
    """

    def __init__(self, output_dir: str | Path) -> None:
        """Raises InputError, which names the holder, if another process has the lock."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        # The kernel's lock on the file counts, not that the file exists. So a run that was killed
        # leaves nothing to clean up.
        self._file = open(Path(output_dir) / LOCK, "a+", encoding="utf-8")
        _take_lock(self._file, output_dir)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        self._file.flush()


def check_unlocked(output_dir: str | Path) -> None:
    """Raises InputError as RunLock does. Makes no file and keeps no lock."""
    path = Path(output_dir) / LOCK
    if path.exists():
        with open(path, encoding="utf-8") as file:
            _take_lock(file, output_dir)


def _take_lock(file: TextIO, output_dir: str | Path) -> None:
    """Lock the file until it is closed. Raises InputError if another process has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "it has not written which"
        raise InputError(
            f"{output_dir}: another run is at work in it ({holder}); wait for it, end it, or give "
            "another output_dir"
        ) from None


def set_aside(output_dir: str | Path, start: str | None, sources: Iterable[str]) -> None:
    """Move what an earlier run left, and this run does not continue, to OUTPUT_DIR/earlier-N.

    If it stayed, the next start would resume from the abandoned run's checkpoints, and they would
    count as newer than those that this run writes. Every rank calls it before training.

    start: the checkpoint that this run continues; None: a fresh start.
    sources: what this run reads. Raises InputError if it would be moved.
    """
    agreed(lambda: _move(Path(output_dir), outdated(Path(output_dir), start, sources)))


def outdated(output_dir: Path, start: str | None, sources: Iterable[str]) -> list[Path]:
    """What set_aside moves. Raises InputError as it does."""
    found = _left_over(output_dir, start)
    for source in sources:
        if any(Path(source).resolve().is_relative_to(path.resolve()) for path in found):
            raise InputError(
                f"model: {source} lies in {output_dir}, where this run would take its place; give "
                "another --output_dir"
            )
    return found


def _left_over(output_dir: Path, start: str | None) -> list[Path]:
    """What lies in the directory and does not belong to the run that goes on from `start`."""
    checkpoints = list_checkpoints(output_dir)
    if start is not None and Path(start).resolve().parent == output_dir.resolve():
        # This run continues its own directory, perhaps from a checkpoint that is not the newest.
        return [path for path in checkpoints if step_of(path) > step_of(Path(start))]
    if not checkpoints and not (output_dir / FINAL).exists():
        # The earlier run ended before it had a result. Its base model is used again.
        return []
    left = [output_dir / name for name in LEFT_BY_A_RUN]
    return checkpoints + [path for path in left if path.exists()]


def _move(output_dir: Path, paths: list[Path]) -> None:
    if not paths:
        return
    places = (output_dir / f"earlier-{number}" for number in itertools.count(1))
    earlier = next(place for place in places if not place.exists())
    earlier.mkdir()
    for path in paths:
        os.replace(path, earlier / path.name)
    names = ", ".join(path.name for path in paths)
    logger.warning(
        "%s of an earlier run moved to %s; remove it when it is not needed", names, earlier
    )


def write_run_directory(
    config: TrainConfig, ds_config: dict | None, argv: list[str], task: RecommendationTask
) -> None:
    """What explains the run to a reader: settings, command, versions. Rank 0 calls it."""
    directory = Path(config.training.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_yaml(directory / "config.yaml", config)
    if ds_config is not None:
        _write_json(directory / "ds_config.json", ds_config)
    # final/ has the index, too. A checkpoint that is merged while the run goes on needs this one.
    task.write_item_index(directory / ITEM_INDEX)
    facts = environment(argv) | {"data": task.dataset.fingerprint}
    _write_json(directory / "environment.json", facts)


def save_final(
    trainer: Trainer,
    config: TrainConfig,
    task: RecommendationTask,
    facts: Mapping[str, Any],
    best: Evaluated | None = None,
) -> None:
    """Write final/, all of it or nothing. Every rank calls it.

    It holds the model or adapter, the tokenizer, and what ranking needs to render users and items
    as training did. facts: what its manifest records of the run. best: the evaluation whose
    checkpoint it is made from; None: the model as it is after the last step.
    """
    output_dir = config.training.output_dir
    directory = staging(output_dir) / FINAL
    step = trainer.state.global_step
    with full_disk_reported(output_dir):
        if best is None:
            trainer.save_model(str(directory))
        else:
            step = best.step
            facts = {**facts, "best": dataclasses.asdict(best)}
            _copy_model(checkpoint_at(output_dir, step), directory)
            logger.info("%s/%s is the best checkpoint: %s", output_dir, FINAL, best)
        if trainer.is_world_process_zero():
            task.write_item_index(directory / ITEM_INDEX)
            write_yaml(directory / "ilrec.yaml", config)
        publish(output_dir, FINAL, {"step": step, **facts})


def _copy_model(checkpoint: Path, directory: Path) -> None:
    """Copy a checkpoint without the state of its training. Every rank calls it.

    Raises InputError if the checkpoint is damaged.
    """
    fault = find_fault(checkpoint)
    if fault:
        raise InputError(
            f"{checkpoint} {fault}; it was the best, and {FINAL}/ cannot be made from it. Remove "
            "it, and the same command goes on without it"
        )
    if rank() == 0:
        shutil.copytree(checkpoint, directory, ignore=shutil.ignore_patterns(*STATE_OF_TRAINING))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
