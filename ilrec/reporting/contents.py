"""What a report is made of: runs (their logs and settings) and rankings (metrics with intervals).

A run is the output_dir of ilrec/train.py, a ranking a ranking.json with the ranks beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilrec.config.described import is_cross_entropy
from ilrec.errors import InputError
from ilrec.files.reading import read_json, read_yaml
from ilrec.ranking.comparison import paired_bootstrap
from ilrec.ranking.metrics import NAMES, values_per_case
from ilrec.ranking.results import SAME, ranks_file, read_ranks
from ilrec.training.metrics_log import read_log

# A run's own ranking: ilrec/rank.py writes it beside the model.
OWN_RANKING = Path("final") / "ranking.json"


@dataclass(frozen=True)
class Run:
    """lines: of its metrics.jsonl, those of evaluations included. settings: its config.yaml, {} if
    there is none. command, versions: as environment.json has them."""

    name: str
    lines: list[dict[str, Any]]
    settings: dict[str, Any]
    command: Sequence[str] = ()
    versions: Mapping[str, Any] | None = None

    @property
    def is_baseline(self) -> bool:
        """Whether it minimises plain cross-entropy."""
        return bool(self.settings) and is_cross_entropy(self.settings)


@dataclass(frozen=True)
class Ranking:
    """intervals: {metric: (low, high)}, 95 % bootstrap intervals over users of those metrics that
    follow from the targets' ranks; {} if no ranks lie beside the file."""

    name: str
    metrics: dict[str, float]
    protocol: dict[str, Any]
    intervals: dict[str, tuple[float, float]]


def run_of(name: str, directory: Path) -> Run:
    """Raises InputError if the directory has no log of a run."""
    lines = read_log(directory)
    settings = directory / "config.yaml"
    environment = directory / "environment.json"
    facts = read_json(environment) if environment.exists() else {}
    return Run(
        name,
        lines,
        read_yaml(settings) if settings.exists() else {},
        facts.get("command", ()),
        facts.get("versions"),
    )


def ranking_of(name: str, path: Path) -> Ranking:
    """Raises InputError if the file is no ranking.json."""
    content = read_json(path, "expected the ranking.json that ilrec/rank.py writes")
    if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
        raise InputError(f"{path}: no metrics in it; expected what ilrec/rank.py writes")
    metrics = {name: value for name, value in content["metrics"].items() if _is_number(value)}
    intervals = {}
    if ranks_file(path).exists():
        ranks = read_ranks(path)
        for metric in filter(_follows_from_ranks, metrics):
            low, high, _ = paired_bootstrap(values_per_case(ranks, metric), ranks.users)
            intervals[metric] = (low, high)
    return Ranking(name, metrics, content.get("protocol", {}), intervals)


def choose_baseline(
    rankings: Sequence[Ranking], runs: Sequence[Run], name: str | None
) -> str | None:
    """The ranking that the others are compared with: the one called `name`; by default the first
    one whose run minimises plain cross-entropy, else the first one.

    None if there is nothing to compare. Raises InputError if no ranking is called `name`.
    """
    names = [ranking.name for ranking in rankings]
    if name is not None:
        if name not in names:
            raise InputError(f"--baseline: expected one of {', '.join(names)}, got {name!r}")
        return name
    if len(names) < 2:
        return None
    plain = [run.name for run in runs if run.is_baseline and run.name in names]
    return plain[0] if plain else names[0]


def differing_protocol(rankings: Sequence[Ranking]) -> list[str]:
    """The fields in which the rankings were measured differently, so that their numbers must not
    be compared."""
    found = []
    for field in SAME:
        given = [ranking.protocol.get(field) for ranking in rankings]
        known = {str(value) for value in given if value is not None}
        if len(known) > 1:
            found.append(field)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _follows_from_ranks(metric: str) -> bool:
    name, _, cutoff = metric.partition("@")
    return name in NAMES and cutoff.isdecimal()
