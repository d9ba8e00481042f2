"""metrics.jsonl in a run directory: one JSON object a log line, which the Trainer writes and
reports read."""

from __future__ import annotations

import json
from pathlib import Path

from ilrec.errors import InputError

METRICS_LOG = "metrics.jsonl"


def read_steps(run: Path) -> list[dict]:
    """The training lines of a run's metrics.jsonl."""
    path = run / METRICS_LOG
    if not path.exists():
        raise InputError(f"{path}: no such file; --run takes the output_dir of ilrec/train.py")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]
