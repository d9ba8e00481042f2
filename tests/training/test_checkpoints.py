"""Which checkpoint a run continues, which are removed, and what a full disk leaves."""

import errno

import pytest
from written_checkpoints import IDENTITY, checkpoint, cut, flip

from ilrec.errors import InputError
from ilrec.training.checkpoints import (
    find_checkpoint,
    full_disk_reported,
    remove_old,
    remove_unfinished,
    staging,
)
from ilrec.training.manifest import MANIFEST, find_fault


def test_newest_by_number_not_by_name(tmp_path):
    older = checkpoint(tmp_path, 9)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) == str(older)
    newest = checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) == str(newest)
    assert find_checkpoint(tmp_path, "never", IDENTITY) is None
    assert find_checkpoint(tmp_path / "new", "auto", IDENTITY) is None


def no_manifest(path):
    (path / MANIFEST).unlink()


def half_a_manifest(path):
    (path / MANIFEST).write_text('{"files": {')


def no_object(path):
    (path / MANIFEST).write_text("[]")


def no_weights(path):
    (path / "weights.safetensors").unlink()


def short_state(path):
    cut(path / "global_step10/optimizer.pt")


def other_weights(path):
    flip(path / "weights.safetensors")


@pytest.mark.parametrize(
    "harm, reason",
    [
        (no_manifest, f"is incomplete: no {MANIFEST} in it"),
        (half_a_manifest, f"is damaged: its {MANIFEST} cannot be read"),
        (no_object, f"is damaged: its {MANIFEST} cannot be read"),
        (no_weights, "is damaged: weights.safetensors is missing"),
        (short_state, "is damaged: global_step10/optimizer.pt has 49 bytes, expected 50"),
        (
            other_weights,
            f"is damaged: weights.safetensors does not fit the SHA-256 in {MANIFEST}",
        ),
    ],
)
def test_a_bad_one_is_skipped_with_the_reason_and_refused_by_name(harm, reason, tmp_path, caplog):
    older = checkpoint(tmp_path, 5)
    bad = checkpoint(tmp_path, 10)
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


def test_unfinished_ones_are_removed_and_reported(tmp_path, caplog):
    (staging(tmp_path) / "checkpoint-3").mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert not staging(tmp_path).exists()
    assert "a checkpoint that was not finished is removed" in caplog.text


def test_a_clean_end_is_no_unfinished_checkpoint(tmp_path, caplog):
    checkpoint(tmp_path, 3)
    remove_unfinished(tmp_path)
    staging(tmp_path).mkdir()  # An earlier version left the empty folder.
    remove_unfinished(tmp_path)
    assert not staging(tmp_path).exists()
    assert "not finished" not in caplog.text


def test_the_last_complete_one_stays(tmp_path):
    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("checkpoint-*"))

    for step in (2, 4, 6):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-8").mkdir()
    remove_old(tmp_path, 2)
    assert left() == ["checkpoint-4", "checkpoint-6"]
    (tmp_path / "checkpoint-6" / MANIFEST).unlink()
    remove_old(tmp_path, 1)
    assert left() == ["checkpoint-4"]
    remove_old(tmp_path, 0)
    assert left() == ["checkpoint-4"], "0: all are kept"


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
    message = "no space left on the disk.*checkpoint-2 is intact"
    with pytest.raises(InputError, match=message) as caught, full_disk_reported(tmp_path):
        raise error
    # The writer's own words are shown, because the cause is a guess.
    assert f"({error}; " in str(caught.value)
    assert " MB free)" in str(caught.value)


def test_another_error_while_saving_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), full_disk_reported(tmp_path):
        raise RuntimeError("something else")
