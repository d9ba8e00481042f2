"""What the reports of the benchmarks have in common: progress lines, tables for the terminal, and
the three files of a report.

    from report_files import aligned, say, write_files      # for its siblings; not a program
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster
import matplotlib.pyplot as plt

from ilrec.files.outputs import whole_file, write_text

# All lines of a run count from here.
STARTED = time.monotonic()


def say(text: str) -> None:
    """A line of progress, with the seconds since the program began."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], num_names: int = 0) -> str:
    """A table for the terminal. The first `num_names` columns are aligned on the left, the others
    on the right.

    The last cell of a row that is shorter than the header is a remark: it widens no column but
    those of the names.
    """
    # Numbers are as wide as the widest of a complete row; names as the widest of all rows.
    table = [header, *rows]
    widths = []
    for column in range(len(header)):
        counted = table if column < num_names else [r for r in table if len(r) == len(header)]
        widths.append(max(len(row[column]) for row in counted))
    # A short row ends early, and so does its line.
    lines = []
    for row in table:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=False)):
            cells.append(cell.ljust(width) if column < num_names else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def how_it_ran(report: dict[str, Any]) -> str:
    """Commit, date, threads and versions."""
    found = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"Commit {found['commit']}, {found['started']}, {report['num_threads']} CPU thread(s), "
        f"Python {found['python']}; {versions}."
    )


def report_name(kind: str, report: dict[str, Any], last: str) -> str:
    """KIND-DEVICE-LAST, the device in small letters and hyphens."""
    device = re.sub(r"[^a-z0-9]+", "-", report["environment"]["device"].lower()).strip("-")
    return f"{kind}-{device}-{last}"


def save_picture(figure: plt.Figure, path: Path) -> None:
    # Closed at once: matplotlib keeps every open figure in memory.
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)
    plt.close(figure)


def write_files(base: Path, report: dict[str, Any], text: str) -> None:
    """The numbers as JSON and the text as Markdown, beside the picture that is drawn already."""
    write_text(base.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
    write_text(base.with_suffix(".md"), text)
    print(f"written: {base}.json, .md, .png", flush=True)
