"""Tables in Markdown for the reports that the tools write, and the same for a terminal."""

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


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, two spaces apart: the first on the left, the others on the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (header, *rows):
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
