"""Steps that are not repeated: what counts as done, what is removed, what goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ilrec.files.steps import ResumableStep, product_files


@pytest.fixture
def step(tmp_path: Path) -> ResumableStep:
    """Training into a directory that is removed when it starts afresh."""
    return ResumableStep(
        marker=tmp_path / "steps" / "train.json",
        wanted={"command": ("train", "--fast"), "inputs": {"data": "d"}},
        products=(tmp_path / "run" / "final",),
        clears=(tmp_path / "run", tmp_path / "train.log"),
    )


def write_weights(step: ResumableStep) -> str:
    final = step.products[0]
    final.mkdir(parents=True, exist_ok=True)
    (final / "model.safetensors").write_text("weights")
    return "digest"


def fails() -> str:
    raise RuntimeError("the disk is full")


def test_a_finished_step_is_done_and_its_marker_tells_how(step):
    assert step.state() == "to do"
    step.run(lambda: write_weights(step), machine="m")
    assert step.state() == "done"
    marker = json.loads(step.marker.read_text())
    assert marker["command"] == ["train", "--fast"] and marker["machine"] == "m"
    assert marker["product"] == "digest" and marker["seconds"] >= 0 and marker["finished"]


def test_a_step_whose_product_is_gone_is_not_done(step):
    step.run(lambda: write_weights(step))
    (step.products[0] / "model.safetensors").unlink()
    assert step.state() == "interrupted", "the directory is there, its weights are not"


def test_one_of_several_products_is_enough_to_be_missed(step, tmp_path):
    both = dataclasses.replace(step, products=(*step.products, tmp_path / "table.json"))
    both.run(lambda: write_weights(both))
    assert both.state() == "interrupted"
    (tmp_path / "table.json").touch()
    assert both.state() == "done"


def test_an_interrupted_step_goes_on_from_what_lies_there(step, tmp_path):
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(RuntimeError):
        step.run(fails)
    assert not (tmp_path / "run").exists(), "the first start is a fresh one"
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    before = step.read_marker()["seconds"]
    assert step.state() == "interrupted" and before > 0
    step.run(lambda: write_weights(step))
    assert (tmp_path / "run" / "checkpoint-2").exists()
    assert step.read_marker()["seconds"] > before, "the times of both parts add up"


def test_other_inputs_start_afresh(step, tmp_path):
    step.run(lambda: write_weights(step))
    (tmp_path / "train.log").touch()
    other = dataclasses.replace(step, wanted={**step.wanted, "inputs": {"data": "e"}})
    assert other.state() == "changed"
    with pytest.raises(RuntimeError):
        other.run(fails)
    assert not (tmp_path / "run").exists() and not (tmp_path / "train.log").exists()


def test_product_files(tmp_path):
    assert product_files(tmp_path / "none") == [] == product_files(tmp_path)
    (tmp_path / "b.safetensors").touch()
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "config.json").touch()
    assert [path.name for path in product_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    assert product_files(tmp_path / "config.json") == [tmp_path / "config.json"]
