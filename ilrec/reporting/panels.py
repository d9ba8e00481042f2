"""Which curves of training there are to draw: one panel for each quantity that some run has.

Every curve begins at its own run's first step, so that runs of one kind lie over one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ilrec.reporting.contents import Run

# The validation metric that is drawn if a run measured several.
USUAL_METRIC = "eval_ndcg@10"


@dataclass(frozen=True)
class Panel:
    """curves: {run: (steps, values)}. is_share: the values lie between 0 and 1."""

    title: str
    caption: str
    curves: dict[str, tuple[list[int], list[float]]]
    is_share: bool = False


def training_panels(runs: Sequence[Run]) -> list[Panel]:
    """The panels in the order in which they are read. A term that no run trains has none."""
    plain = [run for run in runs if not _has_preference(run)]
    preferring = [run for run in runs if _has_preference(run)]
    negatives = [run for run in runs if any(_values(run, "negatives/per_token"))]
    panels = [
        Panel(
            "Cross-entropy",
            "nats per token of the next item",
            _curves(plain, "loss/preference"),
        ),
        Panel(
            "Preference loss",
            "cross-entropy against the hard negatives, nats per token",
            _curves(preferring, "loss/preference"),
        ),
        Panel(
            "Distillation loss",
            "lower layers against the last one, nats per token",
            _curves(runs, "loss/distillation", any),
        ),
        Panel(
            "Reward loss",
            "against the collaborative filter's target, nats per token",
            _curves(runs, "loss/reward", any),
        ),
        Panel(
            "Hard negatives per token",
            "how many the lower layers propose, on average",
            _curves(negatives, "negatives/per_token"),
        ),
        Panel(
            "Tokens without hard negatives",
            "there the preference loss is plain cross-entropy",
            _curves(negatives, "negatives/rows_without"),
            is_share=True,
        ),
        Panel("Validation loss", "on the validation items", _curves(runs, "eval_loss")),
    ]
    metric = _validation_metric(runs)
    if metric:
        title = f"Validation {_title(metric)}"
        panels.append(Panel(title, "ranking during training", _curves(runs, metric)))
    return [panel for panel in panels if panel.curves]


def _has_preference(run: Run) -> bool:
    """Whether hard negatives change its loss/preference, which is plain cross-entropy if not."""
    if "beta" in run.settings:
        return run.settings["beta"] > 0
    return any(_values(run, "negatives/per_token"))


def _curves(
    runs: Sequence[Run], name: str, is_drawn: Callable[[list[float]], bool] = bool
) -> dict[str, tuple[list[int], list[float]]]:
    """The curve of a logged quantity for each run that has it. Of DPO's and other logs, which have
    no terms, the whole loss stands for the first one."""
    curves = {}
    for run in runs:
        steps, values = [], []
        for line in run.lines:
            value = _value(line, name)
            if value is not None:
                steps.append(line["step"])
                values.append(value)
        if is_drawn(values):
            curves[run.name] = (steps, values)
    return curves


def _values(run: Run, name: str) -> list[float]:
    return [line[name] for line in run.lines if name in line]


def _value(line: dict[str, Any], name: str) -> float | None:
    if name == "loss/preference" and name not in line:
        return line.get("loss")
    return line.get(name)


def _validation_metric(runs: Sequence[Run]) -> str | None:
    names = [name for run in runs for line in run.lines for name in line]
    found = [name for name in names if name.startswith("eval_") and "@" in name]
    if USUAL_METRIC in found:
        return USUAL_METRIC
    return found[0] if found else None


def _title(metric: str) -> str:
    """eval_ndcg@10 -> NDCG@10"""
    name, _, cutoff = metric.removeprefix("eval_").partition("@")
    return f"{name.capitalize() if name == 'hit' else name.upper()}@{cutoff}"
