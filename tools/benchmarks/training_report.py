"""What tools/benchmarks/benchmark_training.py measured, for people: an aligned table, Markdown,
JSON and a picture."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster
import matplotlib.pyplot as plt

from ilrec.files.outputs import whole_file, write_text

COLUMNS = (
    "contestant",
    "step s",
    "least - most",
    "time / sft",
    "peak MiB",
    "memory / sft",
    "tokens/s",
    "operation",
)


def write_training_report(report: dict[str, Any], directory: Path) -> None:
    """Prints the tables and writes training-<device>-<size>.json, .md and .png."""
    slug = re.sub(r"[^a-z0-9]+", "-", report["environment"]["device"].lower()).strip("-")
    base = directory / f"training-{slug}-{report['settings']['size']}"
    directory.mkdir(parents=True, exist_ok=True)
    for case in report["cases"]:
        print(f"\n{title(case, report)}\n{aligned(cells(case))}")
    draw(report, base.with_suffix(".png"))
    write_text(base.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
    write_text(base.with_suffix(".md"), markdown(report, f"{base.name}.png"))
    print(f"written: {base}.json, .md, .png", flush=True)


def title(case: dict[str, Any], report: dict[str, Any]) -> str:
    return (
        f"{case['num_supervised']} of {report['settings']['tokens']} tokens supervised, "
        f"{case['negatives_per_token']:.0f} hard negatives each"
    )


def cells(case: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of COLUMNS per contestant."""
    return [
        (
            row["contestant"],
            f"{statistics.median(row['seconds']):.2f}",
            f"{row['seconds'][0]:.2f} - {row['seconds'][-1]:.2f}",
            f"{row['time_ratio']:.3f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['memory_ratio']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['operation_share']:.1%}",
        )
        for row in case["rows"]
    ]


def aligned(lines: list[tuple[str, ...]]) -> str:
    table = [COLUMNS, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in table
    )


def markdown(report: dict[str, Any], picture: str) -> str:
    """Numbers with what is needed to judge and to repeat them."""
    found, settings = report["environment"], report["settings"]
    blocks = [
        f"# What the method costs a training step: {settings['size']} on {found['device']}, {report['dtype']}",
        f"Commit {found['commit']}, {found['started']}, {report['num_threads']} CPU thread(s), Python {found['python']}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ".",
        "    " + " ".join(["python tools/benchmarks/benchmark_training.py", *found["command"][1:]]),
        f"{settings['batch_size']} samples of {settings['tokens']} tokens, adapter {settings['adapter']}, "
        f"{settings['rounds']} rounds in turns; the tool's docstring says what each column is.",
        f"![step time and peak memory]({picture})",
    ]
    for case in report["cases"]:
        rows = "\n".join(
            "| " + " | ".join(line) + " |"
            for line in (COLUMNS, ("---",) * len(COLUMNS), *cells(case))
        )
        blocks += [f"## {title(case, report)}", rows]
    return "\n\n".join(blocks) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """Time | memory, each over sft's; one group of bars per number of supervised tokens."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, key, what in zip(
        panels, ("time_ratio", "memory_ratio"), ("Step time", "Peak memory"), strict=True
    ):
        for group, case in enumerate(report["cases"]):
            places = [i + group * 0.4 for i in range(len(case["rows"]))]
            bars = panel.bar(
                places, [row[key] for row in case["rows"]], 0.38, label=title(case, report)
            )
            panel.bar_label(bars, fmt="%.2f", fontsize=8)
        panel.set_xticks(
            [i + 0.2 * (len(report["cases"]) - 1) for i in range(len(case["rows"]))],
            [row["contestant"] for row in case["rows"]],
        )
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(title=f"{what}, sft = 1")
    panels[0].legend(fontsize=8)
    figure.suptitle(
        f"{report['settings']['size']}, {report['environment']['device']}, {report['dtype']}"
    )
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)
    plt.close(figure)
