"""What an import finds in the lines of its files: malformed lines, records that span lines, quotes.

Each kind is logged where it is first met and counted after that; the counts are in the import's
report.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ilrec.errors import InputError
from ilrec.interactions.dataset_sources import DatasetSource

logger = logging.getLogger(__name__)

# Malformed lines beyond this number are counted, but no longer logged one by one.
MAX_WARNINGS = 20


@dataclass
class Occurrences:
    """How often something was met, and in which file and line first."""

    count: int = 0
    first: str = ""

    def add(self, path: Path | DatasetSource, line: int) -> bool:
        """Count one more. Returns whether it is the first."""
        self.count += 1
        if self.count == 1:
            self.first = f"{path.name}:{line}"
        return self.count == 1

    def __str__(self) -> str:
        return f"{self.count:,}, first at {self.first}"


@dataclass
class Findings:
    """What was found in all files of an import.

    max_bad_lines: this many malformed lines are skipped; one more ends the import. mend: what its
        message tells the user to do.
    """

    max_bad_lines: int = 0
    mend: str = "mend the line, or skip such lines with --max_bad_lines"
    num_bad: int = 0
    spanning: Occurrences = field(default_factory=Occurrences)
    quoted: Occurrences = field(default_factory=Occurrences)

    def __post_init__(self) -> None:
        if self.max_bad_lines < 0:
            raise InputError(f"max_bad_lines: expected 0 or more, got {self.max_bad_lines}")

    def bad(
        self, path: Path | DatasetSource, line: int, reason: str, last: int | None = None
    ) -> None:
        """Count a malformed record, which takes the lines from `line` to `last`.

        Raises InputError if more lines are malformed than may be skipped.
        """
        # A quote that is never closed makes one record of many lines. Each of them counts, so that
        # permission to skip one line does not cost the rest of a file.
        end = last or line
        num_before = self.num_bad
        self.num_bad += end - line + 1
        spans = f" (from here to line {end}, because of a quote)" if end > line else ""

        if self.num_bad > self.max_bad_lines:
            skipped = f" ({num_before} before it were skipped)" if num_before else ""
            raise InputError(f"{path}:{line}: {reason}{spans}{skipped}; {self.mend}")
        if num_before < MAX_WARNINGS:
            logger.warning("%s:%d: %s%s; skipped", path, line, reason, spans)

    def spans(self, path: Path, first: int, last: int) -> None:
        """Count a record that has line breaks in a quoted field."""
        if self.spanning.add(path, first):
            logger.warning(
                "%s:%d: a quote makes one record of the lines from here to line %d; check that "
                "this is meant. All such records are counted, and only the first is logged",
                path,
                first,
                last,
            )

    def within_quotes(self, path: Path, line: int, text: str) -> None:
        """Count a line of a file without quoting that has a field within quotes."""
        if self.quoted.add(path, line):
            logger.warning(
                "%s:%d: the quotes around %.60s are kept, because tab-separated files have no "
                "quoting. If the program that wrote this file quotes (as pandas does), import it "
                "with --quoted_tsv. All such lines are counted, and only the first is logged",
                path,
                line,
                text,
            )

    def report(self) -> dict[str, Any]:
        """What was found, by name; nothing of a kind that was not met."""
        found: dict[str, Any] = {}
        if self.num_bad:
            found["malformed lines skipped"] = self.num_bad
        if self.spanning.count:
            found["records that span lines"] = str(self.spanning)
        if self.quoted.count:
            found["lines with fields within quotes"] = str(self.quoted)
        return found
