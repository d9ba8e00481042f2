"""Values that cannot be written are refused, with where they came from."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from written_adapters import refusal, write_adapter, write_base

from ilrec.merging import rows
from ilrec.merging.adapter import UNCHANGED
from ilrec.merging.rows import MergedTensor, blocks
from ilrec.weights.tensor_files import read_tensors


def test_values_that_the_written_precision_cannot_hold(tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    # float16 ends at 65,504.
    tensors["model.norm.weight"][2] = 1e6
    save_file(tensors, path)
    message = refusal(tmp_path / "adapter", tmp_path / "merged", dtype="float16")
    assert "model.norm.weight: NaN or inf in rows 0 to 15, once written as F16" in message
    tensors["model.norm.weight"][2] = float("inf")
    save_file(tensors, path)
    message = refusal(tmp_path / "adapter", tmp_path / "merged")
    assert f"as stored in {path}" in message


def test_blocks_cover_every_row_once(tmp_path, monkeypatch):
    save_file({"x": torch.zeros(10, 4, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    tensor = MergedTensor("x", read_tensors(tmp_path)["x"], UNCHANGED, "BF16", num_rows=10)
    # A row of 4 values is 16 bytes in float32: three rows a block, or one where none fits.
    monkeypatch.setattr(rows, "BLOCK_BYTES", 50)
    assert list(blocks(tensor)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(blocks(tensor, 4, 8)) == [(4, 7), (7, 8)]
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1)
    assert list(blocks(tensor, 8)) == [(8, 9), (9, 10)]
