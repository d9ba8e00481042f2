"""What a manifest says of a checkpoint: its files, which are checked, and the run that wrote it,
which must be this one."""

import json

import pytest
from written_checkpoints import IDENTITY, checkpoint, flip

from ilrec.errors import InputError
from ilrec.training.checkpoints import FINAL, find_checkpoint, staging
from ilrec.training.manifest import MANIFEST, find_fault, ranks_of, read_recorded


def test_a_manifest_describes_every_file(tmp_path):
    path = checkpoint(tmp_path, 3)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 3
    assert manifest["world_size"] == 1
    assert manifest["identity"] == IDENTITY
    sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
    assert sizes == {"global_step3/optimizer.pt": 15, "weights.safetensors": 7}
    assert not staging(tmp_path).exists(), "it was renamed into place, and what held it is gone"
    assert find_fault(path) == ""
    assert ranks_of(path) == 1
    assert read_recorded(path, "base") is None


@pytest.mark.parametrize(
    "change, message",
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
def test_another_run_is_refused_with_both_values(change, message, resume, tmp_path):
    """Before its files are read: they need not even be whole."""
    flip(checkpoint(tmp_path, 5) / "weights.safetensors")
    named = resume if resume == "auto" else str(tmp_path / resume)
    whole_message = (
        f"checkpoint-5 was trained with other settings than these: {message}. Put back .* another "
        "--output_dir, or --resume never"
    )
    with pytest.raises(InputError, match=whole_message):
        find_checkpoint(tmp_path, named, {**IDENTITY, **change})


def test_where_the_same_thing_lies_does_not_matter(tmp_path):
    moved = {**IDENTITY, "data": {"path": "elsewhere", "sha256": "ab12" * 16}}
    assert find_checkpoint(tmp_path, "auto", moved) is None
    path = checkpoint(tmp_path, 5)
    assert find_checkpoint(tmp_path, "auto", moved) == str(path)


def test_a_finished_run_without_checkpoints_is_another_run_too(tmp_path):
    checkpoint(tmp_path, 5).rename(tmp_path / FINAL)
    other = {**IDENTITY, "beta": 0.9}
    message = "final was trained with other settings than these: beta: 0.1 there, 0.9 now"
    with pytest.raises(InputError, match=message):
        find_checkpoint(tmp_path, "auto", other)
    assert find_checkpoint(tmp_path, "auto", IDENTITY) is None
    assert find_checkpoint(tmp_path, "never", other) is None


@pytest.mark.parametrize(
    "recorded, unknown", [(None, "what it was trained with"), ({"seed": 0}, "beta")]
)
def test_what_an_older_version_did_not_record_is_taken_if_it_is_named(
    recorded, unknown, tmp_path, caplog
):
    path = checkpoint(tmp_path, 5)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.pop("identity")
    if recorded:
        manifest["identity"] = recorded
    (path / MANIFEST).write_text(json.dumps(manifest))
    now = {"seed": 0, "beta": 0.9}
    message = (
        f"checkpoint-5 does not record {unknown}: an older version wrote it. .* --resume CHECKPOINT"
    )
    with pytest.raises(InputError, match=message):
        find_checkpoint(tmp_path, "auto", now)
    assert find_checkpoint(tmp_path, str(path), now) == str(path)
    assert "does not record beta" in caplog.text
    assert "taken because it was named" in caplog.text
