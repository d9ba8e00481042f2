"""What tools/benchmarks/benchmark_training.py measured, for people: an aligned table, Markdown,
JSON and a picture.

    from training_report import write_training_report      # for its siblings; not a program
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from report_files import aligned, how_it_ran, plt, report_name, save_picture, write_files

from ilrec.files.markdown import markdown_table

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
# In the picture a contestant takes one unit. GROUP_SHIFT is the way from its bar of one case to its
# bar of the next.
BAR_WIDTH = 0.38
GROUP_SHIFT = 0.4


def write_training_report(report: dict[str, Any], directory: Path) -> None:
    """Prints the tables and writes training-<device>-<size>.json, .md and .png."""
    base = directory / report_name("training", report, report["settings"]["size"])
    directory.mkdir(parents=True, exist_ok=True)
    for case in report["cases"]:
        print(f"\n{title(case, report)}\n{aligned(COLUMNS, cells(case))}")
    draw(report, base.with_suffix(".png"))
    write_files(base, report, markdown(report, f"{base.name}.png"))


def title(case: dict[str, Any], report: dict[str, Any]) -> str:
    return (
        f"{case['num_supervised']} of {report['settings']['tokens']} tokens supervised, "
        f"{case['negatives_per_token']:.0f} hard negatives each"
    )


def cells(case: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of COLUMNS for each contestant. Its seconds are sorted."""
    lines: list[tuple[str, ...]] = []
    for row in case["rows"]:
        line = (
            row["contestant"],
            f"{statistics.median(row['seconds']):.2f}",
            f"{row['seconds'][0]:.2f} - {row['seconds'][-1]:.2f}",
            f"{row['time_ratio']:.3f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['memory_ratio']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['operation_share']:.1%}",
        )
        lines.append(line)
    return lines


def markdown(report: dict[str, Any], picture: str) -> str:
    """Numbers with what is needed to judge and to repeat them."""
    # The first word of the recorded command is the script's name without its folder.
    found, settings = report["environment"], report["settings"]
    command = " ".join(["python tools/benchmarks/benchmark_training.py", *found["command"][1:]])
    blocks = [
        "# What the method costs a training step: "
        f"{settings['size']} on {found['device']}, {report['dtype']}",
        how_it_ran(report),
        f"    {command}",
        f"{settings['batch_size']} samples of {settings['tokens']} tokens, "
        f"adapter {settings['adapter']}, {settings['rounds']} rounds in turns; "
        "the tool's docstring says what each column is.",
        f"![step time and peak memory]({picture})",
    ]
    for case in report["cases"]:
        blocks += [f"## {title(case, report)}", markdown_table(COLUMNS, cells(case))]
    return "\n\n".join(blocks) + "\n"


def draw(report: dict[str, Any], path: Path) -> None:
    """Time | memory, each over sft's. A contestant has one bar for each number of supervised
    tokens."""
    figure, (times, memory) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw_bars(report, times, "time_ratio", "Step time")
    draw_bars(report, memory, "memory_ratio", "Peak memory")
    times.legend(fontsize=8)
    figure.suptitle(
        f"{report['settings']['size']}, {report['environment']['device']}, {report['dtype']}"
    )
    save_picture(figure, path)


def draw_bars(report: dict[str, Any], panel: plt.Axes, key: str, what: str) -> None:
    cases = report["cases"]
    names = [row["contestant"] for row in cases[0]["rows"]]
    for group, case in enumerate(cases):
        places = [number + group * GROUP_SHIFT for number in range(len(names))]
        ratios = [row[key] for row in case["rows"]]
        bars = panel.bar(places, ratios, BAR_WIDTH, label=title(case, report))
        panel.bar_label(bars, fmt="%.2f", fontsize=8)
    # A name stands under the middle of its bars.
    middle = GROUP_SHIFT / 2 * (len(cases) - 1)
    panel.set_xticks([number + middle for number in range(len(names))], names)
    panel.axhline(1, color="grey", linewidth=0.8)
    panel.set(title=f"{what}, sft = 1")
