"""The mean of models: values against float64, what comes along, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from written_adapters import write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging import averaging
from ilrec.merging.averaging import average


@pytest.fixture
def models(tmp_path) -> list[Path]:
    """Three models of one kind, as the checkpoints of a run are."""
    base = write_base(tmp_path / "m0")
    made = [base]
    for number in (1, 2):
        copy = tmp_path / f"m{number}"
        shutil.copytree(base, copy)
        generator = torch.Generator().manual_seed(number)
        weights = load_file(copy / "model.safetensors")
        for tensor in weights.values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        made.append(copy)
    return made


@pytest.mark.parametrize("block_bytes", [averaging.BLOCK_BYTES, 100])
def test_every_value_is_the_float64_mean_rounded_once(models, tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(averaging, "BLOCK_BYTES", block_bytes)
    average(models, tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    inputs = [load_file(model / "model.safetensors") for model in models]
    assert found.keys() == inputs[0].keys()
    for name, tensor in found.items():
        exact = sum(each[name].double() for each in inputs) / len(inputs)
        assert torch.equal(tensor, exact.to(tensor.dtype)), name


def test_the_result_is_a_model_with_its_tokenizer_and_a_record(models, tmp_path):
    average(models[:2], tmp_path / "mean")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mean")
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    AutoTokenizer.from_pretrained(tmp_path / "mean")
    record = json.loads((tmp_path / "mean" / "AVERAGE.json").read_text())
    assert [entry["directory"] for entry in record["mean_of"]] == ["m0", "m1"]
    assert record["mean_of"][0]["weights"] != record["mean_of"][1]["weights"]


def test_what_ranking_needs_comes_from_the_run_of_a_checkpoint(models, tmp_path):
    """A checkpoint's item index and settings lie in the directory above it."""
    (tmp_path / "item_index.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("data: somewhere\n")
    average(models, tmp_path / "mean")
    assert (tmp_path / "mean" / "ilrec.yaml").read_text() == "data: somewhere\n"
    assert (tmp_path / "mean" / "item_index.json").exists()


def test_refusals_leave_nothing_behind(models, tmp_path):
    def refused(models: list[Path], words: str) -> None:
        with pytest.raises(InputError, match=words):
            average(models, tmp_path / "mean")
        assert not list(tmp_path.glob("mean*"))

    refused(models[:1], "two or more models")
    refused([models[0], tmp_path / "gone"], "gone: no such directory")
    write_adapter(models[0], tmp_path / "adapter")
    refused([models[0], tmp_path / "adapter"], "an adapter.*merge each one first")

    weights = load_file(models[1] / "model.safetensors")
    name = "model.norm.weight"
    cut = {**weights, name: weights[name][:-1].clone()}
    save_file(cut, models[1] / "model.safetensors", metadata={"format": "pt"})
    refused(models, rf"m1: {name} is .*models of one kind")

    weights[name][0] = torch.nan
    save_file(weights, models[1] / "model.safetensors", metadata={"format": "pt"})
    refused(models, f"{name}: NaN or inf")


def test_an_output_that_is_there_is_refused(models):
    with pytest.raises(InputError, match="exists already"):
        average(models[:2], models[2])
