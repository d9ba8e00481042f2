"""metrics.jsonl in a run directory, one JSON object a line: training writes it, reports read it.

A line of stage1, here in three:

    {"step": 2, "loss": 5.967827796936035, "grad_norm": 4.455185413360596, "learning_rate": 0.0001,
     "loss/preference": 5.967827796936035, "loss/distillation": 0.0, "loss/reward": 0.0,
     "negatives/per_token": 251.90625, "negatives/rows_without": 0.0, "epoch": 0.3333333333333333}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.files.reading import read_text

METRICS_LOG = "metrics.jsonl"


def append_line(run: str | Path, step: int, logs: Mapping[str, Any]) -> None:
    # The file is closed after each line, so that a run that is killed loses one line at most.
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


def read_log(run: str | Path) -> list[dict]:
    """All lines of a run's log, those of evaluations included.

    Raises InputError if the run directory has no log, or a line is none of a log.
    """
    path = Path(run) / METRICS_LOG
    text = read_text(path, "expected the output_dir of ilrec/train.py")
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise InputError(
                f"{path}:{number}: not JSON: {error}; remove the line, or resume the run"
            ) from None
    return lines


def read_steps(run: str | Path) -> list[dict]:
    """The training lines of a run: those with a loss, without those of evaluations.

    Raises InputError if the run directory has no log.
    """
    return [line for line in read_log(run) if "loss" in line]
