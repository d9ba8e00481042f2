"""Runs that are killed at random instants and started again until they have finished. Each is
compared with a run that nobody disturbed, to the bit.

    # both stages under ZeRO-2 and ZeRO-3, about 7 minutes
    python tests/integration/stress_resume.py --kills 20 --seed 0

test_faults.py runs a short one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (0, 1, 2)]

from conftest import INIT, write_data
from launched_runs import assert_same_run, command, finish, kill_all, newest_step, started, wait_for

STEPS = 30
# launched_runs.command has it, too.
SAVE_STEPS = 5
CASES = [(stage, zero) for stage in ("stage1", "stage2") for zero in ("zero2", "zero3_cpu")]


@dataclass
class Report:
    """Seconds from a command to the first step that it trains."""

    fresh: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    kills: int = 0


def start_and_kill(
    words: list[str], run: Path, log: Path, num_steps: int, delay: float, report: Report
) -> None:
    """Start the run and kill launcher and ranks `delay` seconds after its `num_steps`-th step, or
    after the last step but one."""
    complete = [int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")]
    begin = max(complete, default=0)
    last = min(begin + num_steps, STEPS - 1)
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    begun = time.monotonic()
    with started(log, *words) as process:
        wait_for(lambda: has_trained(run, before, begin), process, log)
        (report.resumed if complete else report.fresh).append(time.monotonic() - begun)
        wait_for(lambda: newest_step(run) >= last, process, log)
        time.sleep(delay)
        kill_all(process)
    report.kills += 1
    facts = {
        "run": run.name,
        "went on from": begin,
        "killed after step": newest_step(run),
        "saving": [path.name for path in (run / ".saving").glob("*")],
    }
    print(json.dumps(facts), flush=True)


def has_trained(run: Path, before: int, begin: int) -> bool:
    """Whether metrics.jsonl holds a step of this start, which first cuts the file back to the
    checkpoint's step. before: when the file was written before this start."""
    path = run / "metrics.jsonl"
    return path.exists() and path.stat().st_mtime_ns > before and newest_step(run) > begin


def stress(
    cases: list[tuple[str, str]], kills: int, seed: int, data: Path, base: Path, place: Path
) -> Report:
    """`kills` kills in all, divided among the cases. Raises AssertionError if a step is lost,
    repeated or different."""
    draw, report = random.Random(seed), Report()
    for number, (stage, zero) in enumerate(cases):
        mine = kills // len(cases) + (number < kills % len(cases))
        whole, run = place / f"{stage}-{zero}-whole", place / f"{stage}-{zero}"
        finish(command(stage, zero, data, base, whole, "--max_steps", str(STEPS)))
        words = command(stage, zero, data, base, run, "--max_steps", str(STEPS))
        for _ in range(mine):
            # A step and a save take some tenths of a second each. A kill may come anywhere in them.
            num_steps = draw.randint(1, SAVE_STEPS + 2)
            delay = draw.random() * 0.4
            start_and_kill(words, run, place / "log", num_steps, delay, report)
        finish(words)
        assert_same_run(run, whole)
        print(
            f"{run.name}: {mine} kills, {STEPS} steps, each once; they and the weights are equal "
            "to the bit",
            flush=True,
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=20, help="how many, over the four cases (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides when (default %(default)s)")
    arguments = parser.parse_args()
    from ilrec.config.sections import ModelConfig
    from ilrec.model.loading import materialise

    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data, base = write_data(place / "data"), place / "base"
        materialise(
            ModelConfig(init=INIT), base, ["red blue guitar string amp pedal stand"], seed=0
        )
        report = stress(CASES, arguments.kills, arguments.seed, data, base, place)
    print(f"{report.kills} kills, no step lost or repeated")
    print(
        f"seconds to the first step, median: fresh {statistics.median(report.fresh):.2f}, "
        f"resumed {statistics.median(report.resumed):.2f}"
    )


if __name__ == "__main__":
    main()
