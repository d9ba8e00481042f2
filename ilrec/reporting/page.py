"""The page of a report: one HTML file without anything from elsewhere, which opens from the disk.

page.html is its template. Jinja escapes every value that is put into it.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ilrec import __version__
from ilrec.config.described import changed_settings, defaults, objective_lines, objective_of
from ilrec.files.outputs import write_text
from ilrec.ranking.results import title_of
from ilrec.reporting.contents import Ranking, Run, differing_protocol

TEMPLATE = Path(__file__).with_name("page.html")
# What a digest or a long text is cut to in a table; the whole of it is in the tooltip.
SHOWN_CHARACTERS = 48
# Fields of a protocol that differ for any two models.
NEVER_MARKED = ("checkpoint",)


def write_page(
    path: Path,
    picture: bytes,
    rankings: Sequence[Ranking],
    runs: Sequence[Run],
    columns: Sequence[str],
    baseline: str | None,
) -> None:
    """Write the page in place of an older one. picture: a PNG. columns: metrics of the table."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": shown, "command": shlex.join}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        version=__version__,
        picture=base64.b64encode(picture).decode("ascii"),
        columns=[title_of(column) for column in columns],
        results=[result_row(ranking, columns) for ranking in rankings],
        baseline=baseline,
        differing=differing_protocol(rankings),
        rankings=rankings,
        protocol=table({ranking.name: ranking.protocol for ranking in rankings}),
        runs=runs,
        settings=settings_table(runs),
        objectives={
            run.name: objective_lines(objective_of(run.settings)) for run in runs if run.settings
        },
        most=SHOWN_CHARACTERS,
    )
    write_text(path, text)


def result_row(ranking: Ranking, columns: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """(name, [(value, interval)]) as text; empty where it is not known."""
    cells = []
    for column in columns:
        value, interval = ranking.metrics.get(column), ranking.intervals.get(column)
        cells.append(
            (
                "" if value is None else f"{value:.4f}",
                "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
            )
        )
    return ranking.name, cells


def settings_table(runs: Sequence[Run]) -> list[tuple[str, list[Any], bool]]:
    """The settings that are not at their default in some run."""
    usual = defaults()
    names = {name: None for run in runs for name in changed_settings(run.settings)}
    of_runs = {}
    for run in runs:
        of_runs[run.name] = {name: run.settings.get(name, usual.get(name)) for name in names}
    return table(of_runs)


def table(columns: dict[str, dict[str, Any]]) -> list[tuple[str, list[Any], bool]]:
    """(field, its value in each column, whether they differ) of all fields, in their order."""
    names = {name: None for column in columns.values() for name in column}
    rows = []
    for name in names:
        values = [column.get(name) for column in columns.values()]
        differs = any(value != values[0] for value in values)
        rows.append((name, values, differs and name not in NEVER_MARKED))
    return rows


def shown(value: Any) -> str:
    """A value as a reader sees it; text that could be overlooked is in quotes."""
    if value is None:
        return "–"
    if isinstance(value, str) and value.strip() == value and value:
        return value
    return json.dumps(value, ensure_ascii=False)
