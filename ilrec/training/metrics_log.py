"""metrics.jsonl in a run directory, one JSON object a line: training writes it, reports read it.

{"step": 10, "loss": 2.31, "grad_norm": 0.84, ..., "loss/preference": 2.29, ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.files.outputs import write_text
from ilrec.files.reading import read_text

METRICS_LOG = "metrics.jsonl"


def append_line(run: str | Path, step: int, logs: Mapping[str, Any]) -> None:
    with open(Path(run) / METRICS_LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **logs}) + "\n")


def keep_until(run: str | Path, step: int) -> None:
    """Remove the lines after `step`, which the run will write again. 0: a fresh start, remove all.

    Also removes a last line that was cut short when an earlier run was killed.
    """
    path = Path(run) / METRICS_LOG
    if not path.exists():
        return
    # What follows the last line break is empty or half a line.
    whole_lines = read_text(path).split("\n")[:-1]
    kept = [line + "\n" for line in whole_lines if json.loads(line)["step"] <= step > 0]
    write_text(path, "".join(kept))


def read_steps(run: str | Path) -> list[dict]:
    """The training lines of a run: those with a loss, without those of evaluations.

    Raises InputError if the run directory has no log.
    """
    text = read_text(Path(run) / METRICS_LOG, "--run takes the output_dir of ilrec/train.py")
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if "loss" in line]
