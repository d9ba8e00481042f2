"""Tables in Markdown, for the reports that the tools write."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without a line break at its end. A row that is shorter than the header is filled with
    empty cells."""
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        missing = [""] * (len(header) - len(row))
        lines.append(_line([*row, *missing]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
