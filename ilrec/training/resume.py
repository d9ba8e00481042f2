"""Complete checkpoints only: which one to go on from.

A checkpoint counts as complete when the marker that the trainer writes last, after all ranks have saved, is in it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ilrec.errors import InputError

COMPLETE = "complete.json"
logger = logging.getLogger(__name__)


def find_checkpoint(output_dir: str | Path, resume: str) -> str | None:
    """The checkpoint to resume from, or None to start fresh. `resume`: auto, never, or a checkpoint directory.

    auto skips incomplete checkpoints with a warning. A named one must be complete, else InputError.
    """
    if resume == "never":
        return None
    if resume != "auto":
        return _named(Path(resume))
    for checkpoint in sorted(Path(output_dir).glob("checkpoint-*"), key=_step, reverse=True):
        if (checkpoint / COMPLETE).exists():
            return str(checkpoint)
        logger.warning("%s: incomplete (no %s: the run ended while it was written); skipped", checkpoint, COMPLETE)
    return None


def _named(checkpoint: Path) -> str:
    if not checkpoint.is_dir():
        raise InputError(f"resume: no such checkpoint: {checkpoint}; give a checkpoint-N directory, auto or never")
    if not (checkpoint / COMPLETE).exists():
        raise InputError(f"resume: {checkpoint} is incomplete: no {COMPLETE} in it, so the run ended while it was written; "
                         "use an earlier checkpoint-N, or --resume auto to take the newest complete one")
    return str(checkpoint)


def _step(checkpoint: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match.group(1)) if match else -1
