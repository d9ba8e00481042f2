"""What an experiment found, for people: means over seeds and comparisons in Markdown, and a
picture.
"""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster
import matplotlib.pyplot as plt
import numpy as np

from ilrec.experiments.comparisons import Comparison, compare
from ilrec.experiments.grid import ROOT, Grid
from ilrec.experiments.results import Result
from ilrec.files.markdown import markdown_table
from ilrec.files.outputs import whole_file, write_text
from ilrec.ranking.comparison import NUM_RESAMPLES
from ilrec.ranking.results import title_of

COLUMNS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "ndcg@20")


def mean_and_deviation(values: Sequence[float]) -> str:
    """Over seeds. A single value has no deviation."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def metrics_table(results: Mapping[str, Sequence[Result]]) -> str:
    header = ["row", "seeds", *map(title_of, COLUMNS), "training, min", "with its sources, min"]
    return markdown_table(header, [metrics_row(name, runs) for name, runs in results.items()])


def metrics_row(name: str, runs: Sequence[Result]) -> list[str]:
    """The cells of one method. A dash stands for a metric that was not measured, and for the times
    of a method that is not trained."""
    cells = [name, str(len(runs))]
    for column in COLUMNS:
        values = [run.metrics[column] for run in runs if column in run.metrics]
        cells.append(mean_and_deviation(values) if values else "-")
    if not runs[0].train_seconds:
        return [*cells, "-", "-"]
    cells.append(f"{statistics.mean(run.train_seconds for run in runs) / 60:.1f}")
    cells.append(f"{statistics.mean(run.seconds_in_all for run in runs) / 60:.1f}")
    return cells


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "None of the grid's pairs is there."
    # Differences carry their sign; the interval shows whether 0 is inside.
    rows = []
    for c in comparisons:
        cells = [f"{c.first} - {c.second}", title_of(c.metric), f"{c.difference:+.4f}"]
        cells += [f"{c.low:+.4f} to {c.high:+.4f}", f"{c.relative:+.1%}"]
        cells += [f"{c.p:.4f}", f"{c.p_holm:.4f}"]
        cells.append(f"{c.num_seeds[0]}, {c.num_seeds[1]}")
        rows.append(cells)
    header = ["rows", "metric", "difference", "95 % interval", "relative", "p"]
    header += ["p (Holm)", "seeds"]
    return markdown_table(header, rows)


def shown(word: str) -> str:
    """A word of the command without the machine's own places: the path below the project's root, or
    its last part alone."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def markdown(
    grid: Grid, results: Mapping[str, Sequence[Result]], argv: Sequence[str], picture: str
) -> str:
    """The whole report."""
    # The protocol is the same for all rows but for the LLM rows' beams, which the grid holds.
    runs = [run for row in results.values() for run in row]
    protocol = runs[0].protocol
    missing = []
    for name in grid.listed:
        if len(results.get(name, ())) < len(grid.rows[name].seeds):
            missing.append(name)
    blocks = [
        f"# {grid.path.stem}: {grid.split} split",
        f"Full ranking: {protocol['num_users']:,} users, each target against all "
        f"{protocol['num_items']:,} items; ties count against it.\n"
        f"LLM rows: the {grid.num_beams} best items by beam search.\n"
        "Mean ± standard deviation over seeds. Minutes: means over seeds, without ranking.\n"
        f"Not yet there, or not all seeds: {', '.join(missing) or 'none'}.",
        metrics_table(results),
        f"![metrics and training curves]({picture})",
        "## Comparisons",
        f"Paired bootstrap over users, {NUM_RESAMPLES:,} resamples, seeds averaged for each user\n"
        "first. p is two-sided. p (Holm) is adjusted for all comparisons in the same metric. Both\n"
        "speak of other users and not of other seeds; those are in the ± above.",
        comparison_table(compare(grid, results)),
        "## How",
        how_it_was_made(runs, argv),
        "The grid:",
        f"```yaml\n{grid.path.read_text(encoding='utf-8').strip()}\n```",
    ]
    return "\n\n".join(blocks) + "\n"


def how_it_was_made(runs: Sequence[Result], argv: Sequence[str]) -> str:
    """The command, commits, machines and time: what a reader needs to repeat it."""
    # Results may come from several commits and machines, which are all named.
    command = f"ilrec experiment {shlex.join(map(shown, argv))}"
    commits = sorted(set().union(*(run.commits for run in runs)))
    machines = sorted(set().union(*(run.machines for run in runs)))
    hours = sum(run.wall_seconds for run in runs) / 3600
    lines = [
        f"- command: `{command}`",
        f"- commit: {', '.join(commits)}; written {time.strftime('%Y-%m-%d')}",
        f"- machine: {'; '.join(machines)}",
        f"- wall time: {hours:.1f} hours for {len(runs)} runs, ranking included",
    ]
    return "\n".join(lines)


def draw(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Bars of Hit@10 and NDCG@10 | preference loss | hard negatives per token, both over the steps
    of each row's first seed."""
    # The bars need room for each row.
    height = max(4.5, 0.32 * len(results) + 1.5)
    figure, (bars, losses, negatives) = plt.subplots(
        1, 3, figsize=(17, height), layout="constrained"
    )
    draw_bars(results, bars)
    draw_curves(results, losses, "loss/preference")
    draw_curves(results, negatives, "negatives/per_token")
    losses.set(
        title="Preference loss (cross-entropy where beta is 0)",
        xlabel="optimizer step",
        ylabel="mean per supervised token",
    )
    negatives.set(title="Hard negatives", xlabel="optimizer step", ylabel="per supervised token")
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)
    plt.close(figure)


def draw_bars(results: Mapping[str, Sequence[Result]], axis: plt.Axes) -> None:
    """Means with the standard deviation over seeds; the first row on top."""
    # A row has two bars, one above and one below its place.
    places, height = np.arange(len(results)), 0.4
    for shift, metric in ((-height / 2, "hit@10"), (height / 2, "ndcg@10")):
        means, deviations = [], []
        for runs in results.values():
            values = [run.metrics.get(metric, 0.0) for run in runs]
            means.append(statistics.mean(values))
            deviations.append(statistics.stdev(values) if len(values) > 1 else 0.0)
        drawn = axis.barh(
            places + shift, means, height, label=title_of(metric), capsize=2, xerr=deviations
        )
        axis.bar_label(drawn, fmt="%.4f", fontsize=7, padding=2)
    axis.set_yticks(places, list(results))
    axis.invert_yaxis()
    axis.set(title="Full-catalogue ranking")
    axis.margins(x=0.15)
    axis.legend(fontsize=8)


def draw_curves(results: Mapping[str, Sequence[Result]], axis: plt.Axes, key: str) -> None:
    """One entry of the log lines over the steps. Rows that do not log it are left out."""
    for number, (name, runs) in enumerate(results.items()):
        lines = runs[0].curve
        if not any(line.get(key) for line in lines):
            continue
        # 20 colours, then the same once more with broken lines.
        axis.plot(
            [line["step"] for line in lines],
            [line.get(key, 0.0) for line in lines],
            label=name,
            color=plt.get_cmap("tab20")(number % 20),
            linestyle=("-", "--")[number // 20 % 2],
            linewidth=1,
        )
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7)


def write_report(
    grid: Grid, results: Mapping[str, Sequence[Result]], directory: Path, argv: Sequence[str]
) -> Path:
    """NAME.md and NAME.png; those of the validation split have names of their own."""
    # So the tables of both splits lie beside each other.
    name = grid.path.stem if grid.split == "test" else f"{grid.path.stem}-{grid.split}"
    directory.mkdir(parents=True, exist_ok=True)
    draw(results, directory / f"{name}.png")
    write_text(directory / f"{name}.md", markdown(grid, results, argv, f"{name}.png"))
    return directory / f"{name}.md"
