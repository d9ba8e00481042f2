"""Arrow files: rows and texts come back as views of the file; a damaged file is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from ilrec.errors import InputError
from ilrec.interactions.arrow_files import (
    ArrowStrings,
    read_ragged,
    read_table,
    text_column,
    write_ragged,
    write_table,
)
from ilrec.interactions.ragged import Ragged


def test_rows_come_back_mapped_and_alone(tmp_path: Path):
    """Of rows that are a part of a larger array, the part alone is written."""
    rows = Ragged.from_rows([[9, 9], [1, 2, 3], [], [4]])[1:]
    write_ragged(tmp_path / "x.arrow", rows)
    read = read_ragged(tmp_path / "x.arrow", "make it again")
    assert [row.tolist() for row in read] == [[1, 2, 3], [], [4]]
    assert read.values.tolist() == [1, 2, 3, 4]
    assert not read.values.flags.owndata


def test_texts_are_read_when_they_are_asked_for(tmp_path: Path):
    write_table(tmp_path / "x.arrow", {"name": text_column(["a", "", "\u00fc"])})
    names = ArrowStrings(read_table(tmp_path / "x.arrow", "make it again")["name"])
    assert len(names) == 3
    assert names[2] == "\u00fc"
    assert list(names[1:]) == ["", "\u00fc"]
    # What was read is written again without a copy.
    assert text_column(names) is names.column
    assert names.column.type == pa.large_string()


@pytest.mark.parametrize("content", [None, b"", b"no table"])
def test_a_damaged_file_says_how_to_mend_it(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.arrow: not readable as Arrow \(.*; make it again$"):
        read_ragged(tmp_path / "x.arrow", "make it again")
