"""Which checkpoint a run goes on from."""

import pytest

from ilrec.errors import InputError
from ilrec.training.resume import COMPLETE, find_checkpoint


def checkpoint(directory, step: int, complete: bool = True) -> str:
    path = directory / f"checkpoint-{step}"
    path.mkdir()
    if complete:
        (path / COMPLETE).write_text("{}")
    return str(path)


def test_newest_by_number_not_by_name(tmp_path):
    checkpoint(tmp_path, 9)
    assert find_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-9")
    newest = checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "auto") == newest
    assert find_checkpoint(tmp_path, "never") is None


def test_incomplete_ones_are_skipped_and_said(tmp_path, caplog):
    complete = checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, complete=False)
    assert find_checkpoint(tmp_path, "auto") == complete
    assert "checkpoint-10: incomplete" in caplog.text


def test_a_named_one_must_be_there_and_complete(tmp_path):
    incomplete = checkpoint(tmp_path, 3, complete=False)
    with pytest.raises(InputError, match="is incomplete"):
        find_checkpoint(tmp_path, incomplete)
    with pytest.raises(InputError, match="no such checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-4"))
    assert find_checkpoint(tmp_path, checkpoint(tmp_path, 7)) == str(tmp_path / "checkpoint-7")


def test_nothing_to_resume(tmp_path):
    assert find_checkpoint(tmp_path / "new", "auto") is None
