"""The picture of a set of runs: loss terms and hard negatives over the steps, and Hit@K of each
model. `ilrec report` is the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ilrec.errors import InputError
from ilrec.files.outputs import check_file, whole_file

# The terms of the loss that are drawn, each with a line style of its own.
TERM_STYLES = {"preference": "-", "distillation": "--", "reward": ":"}
BAR_METRICS = ("hit@5", "hit@10")
# Of the space between two models, which are 1 apart, so much is filled with bars.
FILLED = 0.8


def check_picture(path: Path) -> None:
    """Raises InputError if the picture could not be written to `path`, whose suffix says of which
    kind it is."""
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InputError(
            f"--output: {path}: expected a name that ends in one of {', '.join(kinds)}"
        )
    check_file(path)


def draw_runs(
    metrics: Mapping[str, Mapping[str, float]], runs: Mapping[str, Sequence[Mapping]], path: Path
) -> None:
    """Writes the picture, in place of an older one.

    metrics: {model: {"hit@5": ..., "hit@10": ...}}, a pair of bars for each model.
    runs: {run: lines of its metrics.jsonl}, in training order.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    losses, negatives, bars = figure.subplots(1, 3)
    draw_training(losses, negatives, runs)
    draw_bars(bars, metrics)
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)


def draw_training(losses: Axes, negatives: Axes, runs: Mapping[str, Sequence[Mapping]]) -> None:
    """Loss terms, and hard negatives per token. Each run begins on the step axis where the run
    before it ended, because a stage goes on from the one before."""
    offset = 0
    for run, lines in runs.items():
        steps = [offset + line["step"] for line in lines]
        for term, style in TERM_STYLES.items():
            values = [line.get(f"loss/{term}", 0.0) for line in lines]
            # A term that the run does not train is 0 everywhere, which a log scale cannot show.
            if any(values):
                losses.plot(steps, values, style, label=f"{run}: {term}")
        counts = [line.get("negatives/per_token", 0.0) for line in lines]
        negatives.plot(steps, counts, label=run)
        if steps:
            offset = steps[-1]

    losses.set_title("Loss terms")
    losses.set_ylabel("mean per supervised token")
    losses.set_yscale("log")
    negatives.set_title("Hard negatives")
    negatives.set_ylabel("per supervised token")
    for axes in (losses, negatives):
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def draw_bars(axes: Axes, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Hit@5 and Hit@10 of each model, side by side."""
    width = FILLED / len(BAR_METRICS)
    for number, metric in enumerate(BAR_METRICS):
        shift = (number + 0.5) * width - FILLED / 2
        places = [model + shift for model in range(len(metrics))]
        heights = [of_model[metric] for of_model in metrics.values()]
        drawn = axes.bar(places, heights, width, label=metric.replace("hit", "Hit"))
        axes.bar_label(drawn, fmt="%.3f", fontsize=7)
    axes.set_xticks(range(len(metrics)), list(metrics), rotation=20)
    axes.set_title("Full-catalogue ranking, test users")
    axes.legend(fontsize=8)
