"""Bases and adapters of which a part is in no file."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file
from written_adapters import refusal, write_adapter, write_base

from ilrec.merging.merge import merge
from ilrec.merging.sources import open_source


@pytest.fixture
def adapter(tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    return tmp_path / "adapter"


def remove(path, start: str) -> None:
    """Take the tensors whose names begin with `start` out of a file."""
    kept = {}
    for name, tensor in load_file(path).items():
        if not name.startswith(start):
            kept[name] = tensor
    save_file(kept, path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("lm_head", "config.json promises lm_head.weight, no file has it"),
        ("model.layers.1.", "config.json promises layer 1 of 2, no file has it"),
        ("model.layers.0.mlp.up", "model.layers.0.mlp.up_proj.weight is in no file"),
    ],
)
def test_a_base_that_lacks_tensors(adapter, tmp_path, start, message):
    remove(tmp_path / "base" / "model.safetensors", start)
    assert f"base: incomplete: {message}" in refusal(adapter, tmp_path / "merged")


def test_an_adapter_that_lacks_an_update(adapter, tmp_path):
    layer = "model.layers.1.mlp.down_proj"
    remove(adapter / "adapter_model.safetensors", f"base_model.model.{layer}.")
    message = refusal(adapter, tmp_path / "merged")
    assert f"(1, first: {layer}.weight)" in message
    assert "adapter: incomplete: target_modules" in message


def test_an_adapter_that_leaves_layers_out(tmp_path):
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter", layers_to_transform=[0])
    with open_source(str(tmp_path / "adapter")) as source:
        merge(source, tmp_path / "merged")
