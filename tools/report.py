"""The table and the picture of a set of runs: metrics of each, loss terms and hard negatives over
steps.

python tools/report.py --rank NAME=ranking.json ... --run NAME=RUN_DIR ... --output report.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen on a cluster
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ilrec.config.command_line import ArgumentParser
from ilrec.errors import InputError
from ilrec.files.outputs import check_file, whole_file
from ilrec.files.reading import read_json
from ilrec.processes import run_entry
from ilrec.ranking.results import format_table
from ilrec.training.metrics_log import read_steps

COLUMNS = ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
TERMS = ("preference", "distillation", "reward")


def named(pairs: list[str]) -> dict[str, Path]:
    """NAME=PATH words, in order."""
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            raise InputError(f"expected NAME=PATH, got {pair!r}")
        found[name] = Path(path)
    return found


def check_picture(path: Path) -> None:
    """InputError where the picture could not be written; its suffix says which kind it is."""
    kinds = plt.gcf().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise InputError(
            f"--output: {path}: expected a name that ends in one of {', '.join(sorted(kinds))}"
        )
    check_file(path)


def draw(rows: dict[str, dict[str, float]], runs: dict[str, list[dict]], path: Path) -> None:
    """Loss terms | hard negatives per token | Hit@K bars. Runs follow each other on the step
    axis."""
    figure, (losses, negatives, bars) = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    offset = 0
    for name, lines in runs.items():
        steps = [offset + line["step"] for line in lines]
        for term, style in zip(TERMS, ("-", "--", ":"), strict=True):
            values = [line.get(f"loss/{term}", 0.0) for line in lines]
            if any(values):
                losses.plot(steps, values, style, label=f"{name}: {term}")
        negatives.plot(steps, [line.get("negatives/per_token", 0.0) for line in lines], label=name)
        offset = steps[-1] if steps else offset
    losses.set(
        title="Loss terms",
        xlabel="optimizer step",
        ylabel="mean per supervised token",
        yscale="log",
    )
    negatives.set(title="Hard negatives", xlabel="optimizer step", ylabel="per supervised token")
    for axis in (losses, negatives):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    width = 0.8 / 2
    for shift, metric in ((-width / 2, "hit@5"), (width / 2, "hit@10")):
        drawn = bars.bar(
            [i + shift for i in range(len(rows))],
            [m[metric] for m in rows.values()],
            width,
            label=metric.replace("hit", "Hit"),
        )
        bars.bar_label(drawn, fmt="%.3f", fontsize=7)
    bars.set_xticks(range(len(rows)), list(rows), rotation=20)
    bars.set(title="Full-catalogue ranking, test users")
    bars.legend(fontsize=8)
    with whole_file(path) as beside:
        figure.savefig(beside, dpi=130)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--rank", nargs="+", required=True, metavar="NAME=FILE", help="ranking.json of each row"
    )
    parser.add_argument(
        "--run",
        nargs="*",
        default=[],
        metavar="NAME=DIR",
        help="run directories, in training order",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="picture to write, in place of an older one: .png, .pdf, .svg, ...",
    )
    arguments = parser.parse_args(argv)
    check_picture(arguments.output)
    rows = {name: read_json(path)["metrics"] for name, path in named(arguments.rank).items()}
    runs = {name: read_steps(path) for name, path in named(arguments.run).items()}
    try:
        draw(rows, runs, arguments.output)
    finally:  # also what cannot be written is said
        print(format_table(rows, COLUMNS), flush=True)
    print(f"picture: {arguments.output}", flush=True)


if __name__ == "__main__":
    run_entry(main)
