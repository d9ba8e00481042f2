"""What makes a checkpoint complete, which one a run goes on from, what is removed, who may write."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ilrec.errors import InputError
from ilrec.training.checkpoints import (
    MANIFEST,
    RunLock,
    find_checkpoint,
    find_fault,
    forget_unfinished,
    full_disk_is_said,
    publish,
    remove_old,
    staging,
)

FACTS = {"data_sha256": "ab12", "seed": 0}


def checkpoint(output_dir: Path, step: int) -> Path:
    """As a trainer leaves it: two files, one of them in a folder."""
    directory = staging(output_dir) / f"checkpoint-{step}" / f"global_step{step}"
    directory.mkdir(parents=True)
    (directory / "optimizer.pt").write_bytes(b"state" * step)
    (directory.parent / "weights.safetensors").write_bytes(b"weights")
    publish(output_dir, f"checkpoint-{step}", {"step": step, **FACTS})
    return output_dir / f"checkpoint-{step}"


def test_a_manifest_describes_every_file(tmp_path):
    path = checkpoint(tmp_path, 3)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 3 and manifest["world_size"] == 1 and manifest["seed"] == 0
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    assert sizes == {"global_step3/optimizer.pt": 15, "weights.safetensors": 7}
    assert not list(staging(tmp_path).iterdir()), "it was renamed into place"
    assert find_fault(path) == ""


def test_newest_by_number_not_by_name(tmp_path):
    older = checkpoint(tmp_path, 9)
    assert find_checkpoint(tmp_path, "auto", FACTS) == str(older)
    newest = checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "auto", FACTS) == str(newest)
    assert find_checkpoint(tmp_path, "never", FACTS) is None
    assert find_checkpoint(tmp_path / "new", "auto", FACTS) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm, reason", [
    (lambda path: (path / MANIFEST).unlink(), f"is incomplete: no {MANIFEST} in it"),
    (lambda path: (path / MANIFEST).write_text('{"files": {'), f"is damaged: its {MANIFEST} cannot be read"),
    (lambda path: (path / MANIFEST).write_text("[]"), f"is damaged: its {MANIFEST} cannot be read"),
    (lambda path: (path / "weights.safetensors").unlink(), "is damaged: weights.safetensors is missing"),
    (lambda path: cut(path / "global_step10/optimizer.pt"), "is damaged: global_step10/optimizer.pt has 49 bytes, expected 50"),
    (lambda path: flip(path / "weights.safetensors"), f"is damaged: weights.safetensors does not fit the SHA-256 in {MANIFEST}"),
])
def test_a_bad_one_is_skipped_with_the_reason_and_refused_by_name(harm, reason, tmp_path, caplog):
    older, bad = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    harm(bad)
    assert find_checkpoint(tmp_path, "auto", FACTS) == str(older)
    assert f"checkpoint-10 {reason}; skipped" in caplog.text
    with pytest.raises(InputError) as caught:
        find_checkpoint(tmp_path, str(bad), FACTS)
    assert str(caught.value).startswith(f"resume: {bad} {reason}; use an earlier checkpoint-N")


def test_a_bad_one_is_replaced_when_its_step_comes_again(tmp_path):
    flip(checkpoint(tmp_path, 5) / "weights.safetensors")
    assert find_fault(checkpoint(tmp_path, 5)) == ""


def test_a_named_one_may_lie_elsewhere_and_must_be_there(tmp_path):
    path = checkpoint(tmp_path, 7)
    assert find_checkpoint(tmp_path / "other", str(path), FACTS) == str(path)
    with pytest.raises(InputError, match="resume: no such checkpoint"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-4"), FACTS)


def test_other_data_or_seed_are_refused(tmp_path):
    checkpoint(tmp_path, 5)
    for name, value in (("data_sha256", "cd34"), ("seed", 1)):
        with pytest.raises(InputError, match=f"checkpoint-5: was trained with {name} {FACTS[name]}, now it is {value}. Put back"):
            find_checkpoint(tmp_path, "auto", {**FACTS, name: value})


def test_unfinished_ones_are_removed_and_said(tmp_path, caplog):
    (staging(tmp_path) / "checkpoint-3").mkdir(parents=True)
    forget_unfinished(tmp_path)
    assert not staging(tmp_path).exists() and "a checkpoint that was not finished is removed" in caplog.text


def test_the_last_complete_one_stays(tmp_path):
    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-8").mkdir()
    remove_old(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    (tmp_path / "checkpoint-6" / MANIFEST).unlink()
    remove_old(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    remove_old(tmp_path, 0)
    assert (tmp_path / "checkpoint-4").exists(), "0: all are kept"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota"),
                                   RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")])
def test_a_full_disk_is_one_message(error, tmp_path):
    checkpoint(tmp_path, 2)
    with pytest.raises(InputError, match="no space left on the disk.*checkpoint-2 is intact"), full_disk_is_said(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="something else"), full_disk_is_said(tmp_path):
        raise RuntimeError("something else")


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    """The first in a process of its own, which is then killed: the kernel gives the lock back."""
    hold = ("import sys, time; from ilrec.training.checkpoints import RunLock\n"
            "lock = RunLock(sys.argv[1]); print(1, flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "1\n"
        with pytest.raises(InputError, match=rf"another run is at work in it \(process {first.pid} on .*, since 20"):
            RunLock(tmp_path)
        first.kill()
    RunLock(tmp_path)
