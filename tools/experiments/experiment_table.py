"""What an experiment found, for people: means over seeds, paired comparisons over users, Markdown
and a picture.

    from experiment_table import paired_bootstrap, write_report      # inside tools/; not a program,
    tools/experiments/run_experiment.py is

Shapes: U users, D different values, R resamples.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiment_grid import Grid
from experiment_results import Result

from ilrec.errors import InputError
from ilrec.files.outputs import whole_file, write_text

COLUMNS = ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10", "ndcg@20")
COMPARED = ("ndcg@10", "hit@10")
NUM_RESAMPLES = 10_000
# Fields of a ranking's protocol: whose ranks these are, and among which items.
PAIRED_BY = ("users_sha256", "items_sha256")
# Entries of the counts drawn at a time: 32 MiB.
BLOCK_ENTRIES = 2**22


class Comparison(NamedTuple):
    """first - second in one metric; low and high bound the 95 % interval of the difference."""

    first: str
    second: str
    metric: str
    num_seeds: tuple[int, int]
    difference: float
    relative: float
    low: float
    high: float
    p: float


def per_user(ranks_U: np.ndarray, metric: str) -> np.ndarray:
    """What each user adds to hit@K or ndcg@K (ilrec/ranking/metrics.py): float64 [U]."""
    name, _, cutoff = metric.partition("@")
    gains_U = 1 / np.log2(ranks_U + 1.0) if name == "ndcg" else np.ones(len(ranks_U))
    return np.where(ranks_U <= int(cutoff), gains_U, 0.0)


def paired_bootstrap(
    differences_U: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(low, high, p) of a mean over users: its 95 % percentile interval, and the two-sided p value
    of "the mean is 0".

    A resample draws U users with replacement. Users with equal values need no telling apart: what
    counts is how often each value was drawn, which is multinomial, and there are far fewer values
    than users. p is the share of resampled means that are as far from the observed mean as that is
    from 0, the observed one counted among them.
    """
    values_D, counts_D = np.unique(differences_U, return_counts=True)
    num_users, observed = len(differences_U), float(np.mean(differences_U))
    generator, size = np.random.default_rng(seed), max(1, BLOCK_ENTRIES // len(values_D))
    blocks = [
        generator.multinomial(num_users, counts_D / num_users, min(size, num_resamples - begin))
        @ values_D
        for begin in range(0, num_resamples, size)
    ]
    means_R = np.concatenate(blocks) / num_users
    low, high = np.percentile(means_R, [2.5, 97.5])
    num_extreme = int((np.abs(means_R - observed) >= abs(observed)).sum())
    return float(low), float(high), (num_extreme + 1) / (num_resamples + 1)


def seeds_to_compare(
    first: Sequence[Result], second: Sequence[Result], any_fits: bool
) -> tuple[list[Result], list[Result]]:
    """The seeds that both rows have, so that a row is set against what it started from; all where
    none is shared or any fits."""
    shared = {result.seed for result in first} & {result.seed for result in second}
    if any_fits or not shared:
        return list(first), list(second)
    return [r for r in first if r.seed in shared], [r for r in second if r.seed in shared]


def require_same_numbering(results: Sequence[Result]) -> None:
    """Ranks are paired by place: InputError where two rankings are not of the same users and items,
    in one order."""
    for result in results:
        found, expected = (
            [run.protocol.get(name) for name in PAIRED_BY] for run in (result, results[0])
        )
        if None not in found and found == expected:
            continue
        fault = "does not say of which users its ranks are (an older version wrote it)"
        if None not in found:
            fault = (
                f"is of other users or items than {results[0].place}, or of them in another order"
            )
        raise InputError(
            f"{result.place}: {fault}; remove it and give the same command again, "
            "which repeats the ranking alone"
        )


def compare(grid: Grid, results: Mapping[str, Sequence[Result]]) -> list[Comparison]:
    """Every pair of the grid of which both rows are there: seeds averaged for each user, then
    bootstrapped over users."""
    found = []
    for names in grid.compare:
        if not all(name in results for name in names):
            continue
        first, second = (results[name] for name in names)
        any_fits = any(grid.rows[name].is_deterministic for name in names)
        pair = seeds_to_compare(first, second, any_fits)
        require_same_numbering([*pair[0], *pair[1]])
        for metric in COMPARED:
            first_U, second_U = (
                np.mean([per_user(result.ranks_U, metric) for result in row], axis=0)
                for row in pair
            )
            difference = float(np.mean(first_U - second_U))
            relative = difference / second_U.mean() if second_U.any() else float("nan")
            found.append(
                Comparison(
                    *names,
                    metric,
                    (len(pair[0]), len(pair[1])),
                    difference,
                    relative,
                    *paired_bootstrap(first_U - second_U),
                )
            )
    return found


def mean_and_deviation(values: Sequence[float]) -> str:
    """Over seeds; a single one has no deviation."""
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def title(metric: str) -> str:
    return metric.replace("hit", "Hit").replace("ndcg", "NDCG")


def metrics_table(results: Mapping[str, Sequence[Result]]) -> str:
    rows = []
    for name, runs in results.items():
        values = [
            [run.metrics[column] for run in runs if column in run.metrics] for column in COLUMNS
        ]
        minutes = [
            statistics.mean(getattr(run, seconds) for run in runs) / 60
            for seconds in ("train_seconds", "seconds_in_all")
        ]
        rows.append(
            [
                name,
                str(len(runs)),
                *(mean_and_deviation(of_runs) if of_runs else "-" for of_runs in values),
                *(f"{value:.1f}" if runs[0].train_seconds else "-" for value in minutes),
            ]
        )
    return markdown_table(
        ["row", "seeds", *map(title, COLUMNS), "training, min", "with its sources, min"], rows
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "None of the grid's pairs is there."
    rows = [
        [
            f"{c.first} - {c.second}",
            title(c.metric),
            f"{c.difference:+.4f}",
            f"{c.low:+.4f} to {c.high:+.4f}",
            f"{c.relative:+.1%}",
            f"{c.p:.4f}",
            f"{c.num_seeds[0]}, {c.num_seeds[1]}",
        ]
        for c in comparisons
    ]
    return markdown_table(
        ["rows", "metric", "difference", "95 % interval", "relative", "p", "seeds"], rows
    )


def shown(word: str) -> str:
    """A word of the command without the machine's own places: below the project's root, or the last
    part alone."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def markdown(
    grid: Grid, results: Mapping[str, Sequence[Result]], argv: Sequence[str], picture: str
) -> str:
    """The whole report."""
    runs = [run for row in results.values() for run in row]
    protocol = runs[0].protocol
    missing = [
        name for name in grid.listed if len(results.get(name, ())) < len(grid.rows[name].seeds)
    ]
    return f"""# {grid.path.stem}: {grid.split} split

Full ranking: {protocol["num_users"]:,} users, each target against all {protocol["num_items"]:,} items; ties count against it.
LLM rows: the {grid.num_beams} best items by beam search.
Mean ± standard deviation over seeds. Minutes: means over seeds, without ranking.
Not yet there, or not all seeds: {", ".join(missing) or "none"}.

{metrics_table(results)}

![metrics and training curves]({picture})

## Comparisons

Paired bootstrap over users, {NUM_RESAMPLES:,} resamples, seeds averaged for each user first. p is two-sided and not corrected for the
number of comparisons. It speaks of other users, not of other seeds: those are in the ± above.

{comparison_table(compare(grid, results))}

## How

- command: `python tools/experiments/run_experiment.py {shlex.join(map(shown, argv))}`
- commit: {", ".join(sorted(set().union(*(run.commits for run in runs))))}; written {time.strftime("%Y-%m-%d")}
- machine: {"; ".join(sorted(set().union(*(run.machines for run in runs))))}
- wall time: {sum(run.wall_seconds for run in runs) / 3600:.1f} hours for {len(runs)} runs, ranking included

The grid:

```yaml
{grid.path.read_text(encoding="utf-8").strip()}
```
"""


def draw(results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Bars of Hit@10 and NDCG@10 | preference loss | hard negatives per token, over the steps of
    each row's first seed."""
    figure, (bars, losses, negatives) = plt.subplots(
        1, 3, figsize=(17, max(4.5, 0.32 * len(results) + 1.5)), layout="constrained"
    )
    draw_bars(results, bars)
    for number, (name, runs) in enumerate(results.items()):
        lines = runs[0].curve
        for axis, key in ((losses, "loss/preference"), (negatives, "negatives/per_token")):
            if any(line.get(key) for line in lines):
                axis.plot(
                    [line["step"] for line in lines],
                    [line.get(key, 0.0) for line in lines],
                    label=name,
                    color=plt.get_cmap("tab20")(number % 20),
                    linestyle=("-", "--")[number // 20 % 2],
                    linewidth=1,
                )
    losses.set(
        title="Preference loss (cross-entropy where beta is 0)",
        xlabel="optimizer step",
        ylabel="mean per supervised token",
    )
    negatives.set(title="Hard negatives", xlabel="optimizer step", ylabel="per supervised token")
    for axis in (losses, negatives):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)
    plt.close(figure)


def draw_bars(results: Mapping[str, Sequence[Result]], axis: plt.Axes) -> None:
    """Means with the standard deviation over seeds; the first row on top."""
    places, height = np.arange(len(results)), 0.4
    for shift, metric in ((-height / 2, "hit@10"), (height / 2, "ndcg@10")):
        values = [[run.metrics.get(metric, 0.0) for run in runs] for runs in results.values()]
        drawn = axis.barh(
            places + shift,
            [statistics.mean(v) for v in values],
            height,
            label=title(metric),
            capsize=2,
            xerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in values],
        )
        axis.bar_label(drawn, fmt="%.4f", fontsize=7, padding=2)
    axis.set_yticks(places, list(results))
    axis.invert_yaxis()
    axis.set(title="Full-catalogue ranking")
    axis.margins(x=0.15)
    axis.legend(fontsize=8)


def write_report(
    grid: Grid, results: Mapping[str, Sequence[Result]], directory: Path, argv: Sequence[str]
) -> Path:
    """NAME.md and NAME.png; those of the validation split have names of their own."""
    name = grid.path.stem if grid.split == "test" else f"{grid.path.stem}-{grid.split}"
    directory.mkdir(parents=True, exist_ok=True)
    draw(results, directory / f"{name}.png")
    write_text(directory / f"{name}.md", markdown(grid, results, argv, f"{name}.png"))
    return directory / f"{name}.md"
