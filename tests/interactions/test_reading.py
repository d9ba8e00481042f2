"""Which kind of data directory it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_files import write_inter, write_json

from ilrec.errors import InputError
from ilrec.interactions.reading import read_interactions


def test_which_files(tmp_path: Path):
    """No kind, a directory that is not there, two item files of other names, and two kinds."""
    none = r"\*\.inter\.json .* and \*\.inter .*found none of these"
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match=none):
            read_interactions(directory, 0)

    write_json(tmp_path / "Set.inter.json", {"u": [1, 2, 3]})
    for name in ("a.item.json", "b.item.json"):
        write_json(tmp_path / name, {str(item): {} for item in range(4)})
    with pytest.raises(InputError, match="expected Set.item.json or a single"):
        read_interactions(tmp_path, 0)

    write_inter(tmp_path, [])
    with pytest.raises(InputError, match="found Set.inter.json, tiny.inter"):
        read_interactions(tmp_path, 0)
