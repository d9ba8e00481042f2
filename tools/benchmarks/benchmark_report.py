"""What tools/benchmarks/benchmark_ops.py measured, for people: lines as it runs, an aligned table,
Markdown, JSON and a picture."""

from __future__ import annotations

import importlib.metadata
import json
import re
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster
import matplotlib.pyplot as plt
import torch

from ilrec.files.outputs import whole_file, write_text
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
OURS, NAIVE, PLAIN = "row_slab", "reference", "cross_entropy"
STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def complete(report: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The report with the device measured, the other libraries' versions and the lines that sum it
    up."""
    versions = dict(report["environment"]["versions"])
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    measured_on = {"device": device_name(device), "versions": versions}
    parts = [*report["sizes"], *([report["released"]] if "released" in report else [])]
    return report | {
        "environment": report["environment"] | measured_on,
        "summary": [line for part in parts for line in summary(part)],
    }


def measured(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["contestant"]: row for row in part["rows"] if "not_measured" not in row}


def summary(part: dict[str, Any]) -> list[str]:
    """row_slab against each contestant that it is meant to replace."""
    rows = measured(part)
    if OURS not in rows:
        return []
    ours, lines = rows[OURS], []
    for name in (NAIVE, "released"):
        if name in rows:
            remark = f" ({rows[name]['remark']})" if "remark" in rows[name] else ""
            lines.append(
                f"N={part['num_tokens']}: row_slab against {name}: {_ratio(rows[name], ours):.1f} x as fast, 1/"
                f"{rows[name]['peak_extra_bytes'] / ours['peak_extra_bytes']:.1f} of its memory{remark}"
            )
    if PLAIN in rows:
        lines.append(
            f"N={part['num_tokens']}: row_slab against plain cross-entropy: {_ratio(ours, rows[PLAIN]):.2f} x its time for "
            f"three terms, {ours['peak_extra_bytes'] / rows[PLAIN]['peak_extra_bytes']:.2f} x its memory"
        )
    return lines


def _ratio(row: dict[str, Any], other: dict[str, Any]) -> float:
    return row["forward_backward"]["median"] / other["forward_backward"]["median"]


def cells(part: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of COLUMNS per contestant; a row that was not measured says why in its third cell and
    ends there."""
    rows = measured(part)
    lines: list[tuple[str, ...]] = []
    for row in part["rows"]:
        if "not_measured" in row:
            lines.append(
                (row["contestant"], row["computes"], f"not measured: {row['not_measured']}")
            )
            continue
        timing, memory = row["forward_backward"], row["peak_extra_bytes"]
        ours, plain = rows.get(OURS), rows.get(PLAIN)
        lines.append(
            (
                row["contestant"],
                row["computes"],
                f"{row['forward']['median'] * 1e3:.1f}",
                f"{timing['median'] * 1e3:.1f}",
                f"{timing['p20'] * 1e3:.1f} - {timing['p80'] * 1e3:.1f}",
                f"{memory / 2**20:.1f}",
                f"{_ratio(row, ours):.2f}" if ours else "-",
                f"{memory / ours['peak_extra_bytes']:.2f}" if ours else "-",
                f"{_ratio(row, plain):.2f}" if plain else "-",
                f"{row['roofline_fraction']:.0%}",
            )
        )
    return lines


def aligned(lines: list[tuple[str, ...]]) -> str:
    """For the terminal. A short row's last cell, a reason, widens no column."""
    table = [COLUMNS, *lines]
    widths = [
        max(len(line[i]) for line in table if len(line) == len(COLUMNS))
        for i in range(len(COLUMNS))
    ]
    widths[:2] = [max(len(line[i]) for line in table) for i in range(2)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in table
    )


def markdown_table(lines: list[tuple[str, ...]]) -> str:
    padded = [line + ("",) * (len(COLUMNS) - len(line)) for line in lines]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (COLUMNS, ("---",) * len(COLUMNS), *padded)
    )


def title(part: dict[str, Any]) -> str:
    shape = (
        f", the last of {part['num_samples']} samples of {part['length']} tokens"
        if "length" in part
        else ""
    )
    return f"{part['num_tokens']} supervised tokens{shape} ({part['negatives_per_token']:.1f} hard negatives each)"


def markdown(report: dict[str, Any], picture: str) -> str:
    """Numbers with what is needed to judge and to repeat them."""
    found, settings, ceiling = report["environment"], report["settings"], report["ceilings"]
    options = " ".join(
        f"--{name} {value}".removesuffix(" True")
        for name, value in settings.items()
        if value is not False
    )
    blocks = [
        f"# The vocabulary operation on {found['device']}, {settings['dtype']}",
        f"Commit {found['commit']}, {found['started']}, {report['num_threads']} CPU thread(s), Python {found['python']}; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        + ".",
        f"    python tools/benchmarks/benchmark_ops.py {options}",
        f"V = {settings['vocab_size']}, H = {settings['hidden_size']}, K = {settings['num_layers']}, head "
        f"{'trained' if settings['train_head'] else 'frozen'}; objective: "
        + ", ".join(f"{name} {value}" for name, value in report["objective"].items())
        + ".",
        f"Ceilings measured in the same run: {ceiling['bytes_per_second'] / 1e9:.1f} GB/s in a large copy, "
        f"{ceiling['flops_per_second'] / 1e9:.1f} GFLOP/s in a large product. Times are medians over "
        f"{settings['repeats']} repeats; memory is the peak beyond the inputs; the tool's docstring says how each is measured.",
        "\n".join(f"- {line}" for line in report["summary"]),
        f"![time and memory over tokens]({picture})",
    ]
    for part in report["sizes"]:
        blocks += [f"## {title(part)}", markdown_table(cells(part))]
    if "released" in report:
        part = report["released"]
        blocks += [f"## The released code's way: {title(part)}", markdown_table(cells(part))]
        blocks += [
            f"{row['contestant']}: {row['remark']}." for row in part["rows"] if "remark" in row
        ]
    if "memory" in report:
        blocks += ["## Memory when V doubles", memory_line(report["memory"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def memory_line(found: dict[str, Any]) -> str:
    smaller, larger = found["peak_extra_bytes"]
    slab, verdict = found["slab_bytes"], "within" if found["within"] else "NOT within"
    return (
        f"row_slab's peak at {found['num_tokens']} tokens: {_mib(smaller)} with V = {found['vocab_sizes'][0]}, {_mib(larger)} "
        f"with V = {found['vocab_sizes'][1]}. The change is {(larger - smaller) / slab:+.1%} of the slab of {_mib(slab)}, "
        f"{verdict} a tenth. Beyond the slab: {_mib(larger - slab)}, of which {_mib(found['gradient_bytes'])} are gradients "
        "of the inputs."
    )


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def draw(report: dict[str, Any], path: Path) -> None:
    """Time | memory, over tokens."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    parts = report["sizes"]
    for name in dict.fromkeys(row["contestant"] for part in parts for row in part["rows"]):
        points = [
            (part["num_tokens"], measured(part)[name]) for part in parts if name in measured(part)
        ]
        if not points:
            continue
        tokens = [num_tokens for num_tokens, _ in points]
        label = f"{name} ({points[0][1]['computes']})"
        panels[0].plot(
            tokens,
            [row["forward_backward"]["median"] * 1e3 for _, row in points],
            "o-",
            label=label,
        )
        panels[1].plot(
            tokens, [row["peak_extra_bytes"] / 2**20 for _, row in points], "o-", label=label
        )
    for panel, what, unit in zip(
        panels,
        ("Forward and backward", "Peak memory beyond the inputs"),
        ("ms", "MiB"),
        strict=True,
    ):
        panel.set(title=what, xlabel="supervised tokens", ylabel=unit, xscale="log", yscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0].legend(fontsize=8)
    figure.suptitle(
        f"{report['environment']['device']}, {report['settings']['dtype']}, V = {report['settings']['vocab_size']}, "
        f"H = {report['settings']['hidden_size']}, K = {report['settings']['num_layers']}"
    )
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)
    plt.close(figure)


def write_report(report: dict[str, Any], device: torch.device, output: Path) -> None:
    """Prints the tables and writes ops-<device>-<dtype>.json, .md and .png."""
    report = complete(report, device)
    slug = re.sub(r"[^a-z0-9]+", "-", report["environment"]["device"].lower()).strip("-")
    base = output / f"ops-{slug}-{report['settings']['dtype']}"
    for part in [*report["sizes"], *([report["released"]] if "released" in report else [])]:
        print(f"\n{title(part)}\n{aligned(cells(part))}")
    print("\n" + "\n".join(report["summary"]))
    if "memory" in report:
        print(memory_line(report["memory"]))
    draw(report, base.with_suffix(".png"))
    write_text(base.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
    write_text(base.with_suffix(".md"), markdown(report, f"{base.name}.png"))
    print(f"written: {base}.json, .md, .png", flush=True)
