"""Who may write into a run directory, and what of an earlier run is moved aside."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from written_checkpoints import IDENTITY, checkpoint

from ilrec.errors import InputError
from ilrec.training.checkpoints import FINAL, find_checkpoint, remove_old
from ilrec.training.run_directory import RunLock, set_aside


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_fresh_start_moves_the_earlier_run_aside(tmp_path, caplog):
    """If it stayed, checkpoint-100 of that run would count as newer than this run's 10: that one
    would be removed, and the old one continued."""
    for step in (50, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "metrics.jsonl").write_text("of that run")
    (tmp_path / "my notes").write_text("the user's")
    set_aside(tmp_path, None, [])
    assert names(tmp_path) == {"earlier-1", "my notes"}
    assert names(tmp_path / "earlier-1") == {"checkpoint-50", "checkpoint-100", "metrics.jsonl"}
    assert "checkpoint-100, checkpoint-50, metrics.jsonl of an earlier run moved to" in caplog.text
    mine = checkpoint(tmp_path, 10)
    remove_old(tmp_path, 1)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) == str(mine)
    (tmp_path / FINAL).mkdir()
    set_aside(tmp_path, None, [])
    assert names(tmp_path / "earlier-2") == {"checkpoint-10", FINAL}


def test_what_the_run_continues_is_not_moved(tmp_path):
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    for name in (FINAL, "base"):
        (tmp_path / name).mkdir()
    set_aside(tmp_path, str(tmp_path / "checkpoint-15"), [])
    assert names(tmp_path) == {"checkpoint-5", "checkpoint-10", "checkpoint-15", FINAL, "base"}
    set_aside(tmp_path, str(tmp_path / "checkpoint-10"), [])
    assert names(tmp_path / "earlier-1") == {"checkpoint-15"}


def test_a_directory_without_results_is_left_as_it_is(tmp_path):
    """A run that ended before its first checkpoint: its base is used again."""
    (tmp_path / "base").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    set_aside(tmp_path, None, [])
    assert names(tmp_path) == {"base", "metrics.jsonl"}


def test_what_a_run_starts_from_is_not_moved_away(tmp_path):
    checkpoint(tmp_path, 5)
    (tmp_path / FINAL).mkdir()
    message = "model: .*final lies in .*, where this run would take its place"
    with pytest.raises(InputError, match=message):
        set_aside(tmp_path, None, ["hub/name", str(tmp_path / FINAL)])
    assert names(tmp_path) == {"checkpoint-5", FINAL}


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    """The first has a process of its own, which is then killed: the kernel gives the lock back."""
    hold = (
        "import sys, time; from ilrec.training.run_directory import RunLock\n"
        "lock = RunLock(sys.argv[1]); print(1, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "1\n"
        message = rf"another run is at work in it \(process {first.pid} on .*, since 20"
        with pytest.raises(InputError, match=message):
            RunLock(tmp_path)
        first.kill()
    RunLock(tmp_path)
