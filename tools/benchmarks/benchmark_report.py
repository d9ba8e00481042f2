"""What tools/benchmarks/benchmark_ops.py measured, for people: an aligned table, Markdown, JSON and
a picture.

    from benchmark_report import write_report      # for its siblings; not a program

A report's parts (its sizes, and the released code's micro-batch) have one row for each contestant:

    {"contestant": "row_slab", "computes": "three terms", "num_tokens": 64, ...}
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from report_files import aligned, how_it_ran, plt, report_name, save_picture, write_files

from ilrec.files.markdown import markdown_table
from ilrec.processes import device_name

LIBRARIES = ("liger-kernel", "cut-cross-entropy")
COLUMNS = (
    "contestant",
    "computes",
    "forward ms",
    "fwd+bwd ms",
    "p20 - p80",
    "memory MiB",
    "time / row_slab",
    "memory / row_slab",
    "time / CE",
    "of roofline",
)
# The first columns hold names, the others numbers.
NUM_NAMES = 2
# The contestants that the summary speaks of.
OURS, NAIVE, RELEASED, PLAIN = "row_slab", "reference", "released", "cross_entropy"


def complete(report: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The report with the device measured, the other libraries' versions and the lines that sum it
    up."""
    # The environment names the packages of the project; contestants come from other libraries, too.
    versions = dict(report["environment"]["versions"])
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    measured_on = {"device": device_name(device), "versions": versions}
    lines = []
    for part in parts_of(report):
        lines += summary(part)
    return report | {"environment": report["environment"] | measured_on, "summary": lines}


def parts_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The sizes, and the released code's micro-batch if it was measured."""
    released = [report["released"]] if "released" in report else []
    return [*report["sizes"], *released]


def measured(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{contestant: row} of those that were measured."""
    return {row["contestant"]: row for row in part["rows"] if "not_measured" not in row}


def summary(part: dict[str, Any]) -> list[str]:
    """row_slab against each contestant that it is meant to replace."""
    rows = measured(part)
    if OURS not in rows:
        return []
    # How many times as long the others take, and as much memory they need.
    ours = rows[OURS]
    lines = []
    for name in (NAIVE, RELEASED):
        if name in rows:
            theirs = rows[name]
            remark = f" ({theirs['remark']})" if "remark" in theirs else ""
            lines.append(
                f"N={part['num_tokens']}: row_slab against {name}: "
                f"{_time_ratio(theirs, ours):.1f} x as fast, "
                f"1/{_memory_ratio(theirs, ours):.1f} of its memory{remark}"
            )
    # Plain cross-entropy computes less, so here the question is what the method costs on top.
    if PLAIN in rows:
        plain = rows[PLAIN]
        lines.append(
            f"N={part['num_tokens']}: row_slab against plain cross-entropy: "
            f"{_time_ratio(ours, plain):.2f} x its time for three terms, "
            f"{_memory_ratio(ours, plain):.2f} x its memory"
        )
    return lines


def _time_ratio(row: dict[str, Any], other: dict[str, Any]) -> float:
    return row["forward_backward"]["median"] / other["forward_backward"]["median"]


def _memory_ratio(row: dict[str, Any], other: dict[str, Any]) -> float:
    return row["peak_extra_bytes"] / other["peak_extra_bytes"]


def cells(part: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of COLUMNS for each contestant. A row that was not measured gives the reason in its
    third cell and ends there."""
    # The ratios need these two; without them, a dash stands in the column.
    rows = measured(part)
    ours, plain = rows.get(OURS), rows.get(PLAIN)
    lines: list[tuple[str, ...]] = []
    for row in part["rows"]:
        names = (row["contestant"], row["computes"])
        if "not_measured" in row:
            lines.append((*names, f"not measured: {row['not_measured']}"))
            continue
        timing = row["forward_backward"]
        numbers = (
            f"{row['forward']['median'] * 1e3:.1f}",
            f"{timing['median'] * 1e3:.1f}",
            f"{timing['p20'] * 1e3:.1f} - {timing['p80'] * 1e3:.1f}",
            f"{row['peak_extra_bytes'] / 2**20:.1f}",
            f"{_time_ratio(row, ours):.2f}" if ours else "-",
            f"{_memory_ratio(row, ours):.2f}" if ours else "-",
            f"{_time_ratio(row, plain):.2f}" if plain else "-",
            f"{row['roofline_fraction']:.0%}",
        )
        lines.append((*names, *numbers))
    return lines


def title(part: dict[str, Any]) -> str:
    shape = ""
    if "length" in part:
        shape = f", the last of {part['num_samples']} samples of {part['length']} tokens"
    return (
        f"{part['num_tokens']} supervised tokens{shape} "
        f"({part['negatives_per_token']:.1f} hard negatives each)"
    )


def markdown(report: dict[str, Any], picture: str) -> str:
    """Numbers with what is needed to judge and to repeat them."""
    blocks = [*_head(report), f"![time and memory over tokens]({picture})"]
    for part in report["sizes"]:
        blocks += [f"## {title(part)}", markdown_table(COLUMNS, cells(part))]
    # Two parts that are only there if they were asked for.
    if "released" in report:
        part = report["released"]
        blocks.append(f"## The released code's way: {title(part)}")
        blocks.append(markdown_table(COLUMNS, cells(part)))
        for row in part["rows"]:
            if "remark" in row:
                blocks.append(f"{row['contestant']}: {row['remark']}.")
    if "memory" in report:
        blocks += ["## Memory when V doubles", memory_line(report["memory"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _head(report: dict[str, Any]) -> list[str]:
    """Title, environment, command, settings, ceilings and summary."""
    settings, ceiling = report["settings"], report["ceilings"]
    head = "trained" if settings["train_head"] else "frozen"
    objective = ", ".join(f"{name} {value}" for name, value in report["objective"].items())
    return [
        f"# The vocabulary operation on {report['environment']['device']}, {settings['dtype']}",
        how_it_ran(report),
        f"    {_command(settings)}",
        f"V = {settings['vocab_size']}, H = {settings['hidden_size']}, "
        f"K = {settings['num_layers']}, head {head}; objective: {objective}.",
        "Ceilings measured in the same run: "
        f"{ceiling['bytes_per_second'] / 1e9:.1f} GB/s in a large copy, "
        f"{ceiling['flops_per_second'] / 1e9:.1f} GFLOP/s in a large product. "
        f"Times are medians over {settings['repeats']} repeats; memory is the peak beyond the "
        "inputs; the tool's docstring says how each is measured.",
        "\n".join(f"- {line}" for line in report["summary"]),
    ]


def _command(settings: dict[str, Any]) -> str:
    """All settings as flags; those that are off are left out."""
    words = ["python tools/benchmarks/benchmark_ops.py"]
    for name, value in settings.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words.append(f"--{name} {value}")
    return " ".join(words)


def memory_line(found: dict[str, Any]) -> str:
    smaller, larger = found["peak_extra_bytes"]
    slab = found["slab_bytes"]
    verdict = "within" if found["within"] else "NOT within"
    return (
        f"row_slab's peak at {found['num_tokens']} tokens: "
        f"{_mib(smaller)} with V = {found['vocab_sizes'][0]}, "
        f"{_mib(larger)} with V = {found['vocab_sizes'][1]}. "
        f"The change is {(larger - smaller) / slab:+.1%} of the slab of {_mib(slab)}, "
        f"{verdict} a tenth. Beyond the slab: {_mib(larger - slab)}, "
        f"of which {_mib(found['gradient_bytes'])} are gradients of the inputs."
    )


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def draw(report: dict[str, Any], path: Path) -> None:
    """Time | memory, over tokens; one line for each contestant."""
    figure, (times, memory) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    # Each contestant's points; in the order in which they first appear.
    points: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for part in report["sizes"]:
        for name, row in measured(part).items():
            points.setdefault(name, []).append((part["num_tokens"], row))
    for name, found in points.items():
        tokens = [num_tokens for num_tokens, _ in found]
        milliseconds = [row["forward_backward"]["median"] * 1e3 for _, row in found]
        mebibytes = [row["peak_extra_bytes"] / 2**20 for _, row in found]
        label = f"{name} ({found[0][1]['computes']})"
        times.plot(tokens, milliseconds, "o-", label=label)
        memory.plot(tokens, mebibytes, "o-", label=label)

    # Sizes differ by powers of two, costs by powers of ten: all axes are logarithmic.
    times.set(title="Forward and backward", ylabel="ms")
    memory.set(title="Peak memory beyond the inputs", ylabel="MiB")
    for panel in (times, memory):
        panel.set(xlabel="supervised tokens", xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both")
    times.legend(fontsize=8)
    settings = report["settings"]
    figure.suptitle(
        f"{report['environment']['device']}, {settings['dtype']}, V = {settings['vocab_size']}, "
        f"H = {settings['hidden_size']}, K = {settings['num_layers']}"
    )
    save_picture(figure, path)


def write_report(report: dict[str, Any], device: torch.device, output: Path) -> None:
    """Prints the tables and writes ops-<device>-<dtype>.json, .md and .png."""
    report = complete(report, device)
    base = output / report_name("ops", report, report["settings"]["dtype"])
    for part in parts_of(report):
        print(f"\n{title(part)}\n{aligned(COLUMNS, cells(part), NUM_NAMES)}")
    print("\n" + "\n".join(report["summary"]))
    if "memory" in report:
        print(memory_line(report["memory"]))
    # The picture comes first, because the Markdown shows it.
    draw(report, base.with_suffix(".png"))
    write_files(base, report, markdown(report, f"{base.name}.png"))
