"""What makes a checkpoint complete, which one a run goes on from, what is removed, who may
write."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ilrec.errors import InputError
from ilrec.training.checkpoints import (
    FINAL,
    MANIFEST,
    RunLock,
    find_checkpoint,
    find_fault,
    forget_unfinished,
    full_disk_is_said,
    publish,
    remove_old,
    set_aside,
    staging,
)

IDENTITY = {"data": {"path": "d", "sha256": "ab12" * 16}, "seed": 0, "beta": 0.1, "gguf": None}


def checkpoint(output_dir: Path, step: int) -> Path:
    """As a trainer leaves it: two files, one of them in a folder."""
    directory = staging(output_dir) / f"checkpoint-{step}" / f"global_step{step}"
    directory.mkdir(parents=True)
    (directory / "optimizer.pt").write_bytes(b"state" * step)
    (directory.parent / "weights.safetensors").write_bytes(b"weights")
    publish(output_dir, f"checkpoint-{step}", {"step": step, "identity": IDENTITY})
    return output_dir / f"checkpoint-{step}"


def test_a_manifest_describes_every_file(tmp_path):
    path = checkpoint(tmp_path, 3)
    manifest = json.loads((path / MANIFEST).read_text())
    assert (
        manifest["step"] == 3 and manifest["world_size"] == 1 and manifest["identity"] == IDENTITY
    )
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    assert sizes == {"global_step3/optimizer.pt": 15, "weights.safetensors": 7}
    assert not staging(tmp_path).exists(), "it was renamed into place, and what held it is gone"
    assert find_fault(path) == ""


def test_newest_by_number_not_by_name(tmp_path):
    older = checkpoint(tmp_path, 9)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) == str(older)
    newest = checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) == str(newest)
    assert find_checkpoint(tmp_path, "never", IDENTITY) is None
    assert find_checkpoint(tmp_path / "new", "auto", IDENTITY) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm, reason",
    [
        (lambda path: (path / MANIFEST).unlink(), f"is incomplete: no {MANIFEST} in it"),
        (
            lambda path: (path / MANIFEST).write_text('{"files": {'),
            f"is damaged: its {MANIFEST} cannot be read",
        ),
        (
            lambda path: (path / MANIFEST).write_text("[]"),
            f"is damaged: its {MANIFEST} cannot be read",
        ),
        (
            lambda path: (path / "weights.safetensors").unlink(),
            "is damaged: weights.safetensors is missing",
        ),
        (
            lambda path: cut(path / "global_step10/optimizer.pt"),
            "is damaged: global_step10/optimizer.pt has 49 bytes, expected 50",
        ),
        (
            lambda path: flip(path / "weights.safetensors"),
            f"is damaged: weights.safetensors does not fit the SHA-256 in {MANIFEST}",
        ),
    ],
)
def test_a_bad_one_is_skipped_with_the_reason_and_refused_by_name(harm, reason, tmp_path, caplog):
    older, bad = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    harm(bad)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) == str(older)
    assert f"checkpoint-10 {reason}; skipped" in caplog.text
    with pytest.raises(InputError) as caught:
        find_checkpoint(tmp_path, str(bad), IDENTITY)
    assert str(caught.value).startswith(f"resume: {bad} {reason}; use an earlier checkpoint-N")


def test_a_bad_one_is_replaced_when_its_step_comes_again(tmp_path):
    flip(checkpoint(tmp_path, 5) / "weights.safetensors")
    assert find_fault(checkpoint(tmp_path, 5)) == ""


def test_a_named_one_may_lie_elsewhere_and_must_be_there(tmp_path):
    path = checkpoint(tmp_path, 7)
    assert find_checkpoint(tmp_path / "other", str(path), IDENTITY) == str(path)
    with pytest.raises(InputError, match="resume: no such checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-4"), IDENTITY)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"beta": 0.9, "seed": 1}, "seed: 0 there, 1 now; beta: 0.1 there, 0.9 now"),
        (
            {"data": {"path": "d", "sha256": "cd34" * 16}},
            r"data: d \(sha256 ab12ab12ab12...\) there, d \(sha256 cd34cd34cd34...\) now",
        ),
        ({"gguf": {"path": "g", "sha256": "0" * 64}}, "gguf: none there, g .* now"),
        ({"beta": None}, "beta: 0.1 there, none now"),
    ],
)
@pytest.mark.parametrize("resume", ["auto", "checkpoint-5"])
def test_another_run_is_refused_with_both_values(change, said, resume, tmp_path):
    """Before its files are read: they need not even be whole."""
    flip(checkpoint(tmp_path, 5) / "weights.safetensors")
    named = resume if resume == "auto" else str(tmp_path / resume)
    with pytest.raises(
        InputError,
        match=f"checkpoint-5 was trained with other settings than these: {said}. Put back .* another "
        "--output_dir, or --resume never",
    ):
        find_checkpoint(tmp_path, named, {**IDENTITY, **change})


def test_where_the_same_thing_lies_does_not_matter(tmp_path):
    moved = {**IDENTITY, "data": {"path": "elsewhere", "sha256": "ab12" * 16}}
    assert find_checkpoint(tmp_path, "auto", moved) is None
    path = checkpoint(tmp_path, 5)
    assert find_checkpoint(tmp_path, "auto", moved) == str(path)


def test_a_finished_run_without_checkpoints_is_another_run_too(tmp_path):
    checkpoint(tmp_path, 5).rename(tmp_path / FINAL)
    with pytest.raises(
        InputError,
        match=r"final was trained with other settings than these: beta: 0.1 there, 0.9 now",
    ):
        find_checkpoint(tmp_path, "auto", {**IDENTITY, "beta": 0.9})
    assert find_checkpoint(tmp_path, "auto", IDENTITY) is None
    assert find_checkpoint(tmp_path, "never", {**IDENTITY, "beta": 0.9}) is None


@pytest.mark.parametrize(
    "recorded, said", [(None, "what it was trained with"), ({"seed": 0}, "beta")]
)
def test_what_an_older_version_did_not_record_is_taken_where_it_is_named(
    recorded, said, tmp_path, caplog
):
    path = checkpoint(tmp_path, 5)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.pop("identity")
    (path / MANIFEST).write_text(
        json.dumps(manifest | ({"identity": recorded} if recorded else {}))
    )
    now = {"seed": 0, "beta": 0.9}
    with pytest.raises(
        InputError,
        match=f"checkpoint-5 does not record {said}: an older version wrote it. .* --resume CHECKPOINT",
    ):
        find_checkpoint(tmp_path, "auto", now)
    assert find_checkpoint(tmp_path, str(path), now) == str(path)
    assert "does not record beta" in caplog.text and "taken because it was named" in caplog.text


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_fresh_start_moves_the_earlier_run_aside(tmp_path, caplog):
    """Else checkpoint-100 of that run would count as newer than this run's 10, which would be
    removed, and be gone on from."""
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


def test_nothing_is_moved_that_is_gone_on_from(tmp_path):
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
    with pytest.raises(
        InputError, match="model: .*final lies in .*, where this run would take its place"
    ):
        set_aside(tmp_path, None, ["hub/name", str(tmp_path / FINAL)])
    assert names(tmp_path) == {"checkpoint-5", FINAL}


def test_unfinished_ones_are_removed_and_said(tmp_path, caplog):
    (staging(tmp_path) / "checkpoint-3").mkdir(parents=True)
    forget_unfinished(tmp_path)
    assert (
        not staging(tmp_path).exists()
        and "a checkpoint that was not finished is removed" in caplog.text
    )


def test_a_clean_end_is_no_unfinished_checkpoint(tmp_path, caplog):
    checkpoint(tmp_path, 3)
    forget_unfinished(tmp_path)
    staging(tmp_path).mkdir()  # as an earlier version left it
    forget_unfinished(tmp_path)
    assert not staging(tmp_path).exists() and "not finished" not in caplog.text


def test_the_last_complete_one_stays(tmp_path):
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-8").mkdir()
    remove_old(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    (tmp_path / "checkpoint-6" / MANIFEST).unlink()
    remove_old(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    remove_old(tmp_path, 0)
    assert (tmp_path / "checkpoint-4").exists(), "0: all are kept"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_one_message(error, tmp_path):
    checkpoint(tmp_path, 2)
    with (
        pytest.raises(
            InputError, match="no space left on the disk.*checkpoint-2 is intact"
        ) as caught,
        full_disk_is_said(tmp_path),
    ):
        raise error
    assert f"({error}; " in str(caught.value) and " MB free)" in str(caught.value), (
        "what the writer says itself is shown"
    )
    with pytest.raises(RuntimeError, match="something else"), full_disk_is_said(tmp_path):
        raise RuntimeError("something else")


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    """The first in a process of its own, which is then killed: the kernel gives the lock back."""
    hold = (
        "import sys, time; from ilrec.training.checkpoints import RunLock\n"
        "lock = RunLock(sys.argv[1]); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "1\n"
        with pytest.raises(
            InputError, match=rf"another run is at work in it \(process {first.pid} on .*, since 20"
        ):
            RunLock(tmp_path)
        first.kill()
    RunLock(tmp_path)
