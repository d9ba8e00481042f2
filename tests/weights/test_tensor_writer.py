"""Files that TensorWriter wrote, as the safetensors package reads them."""

from __future__ import annotations

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ilrec.weights.tensor_files import NAMES, read_tensors
from ilrec.weights.tensor_writer import NewTensor, TensorWriter


def test_written_files_are_read_by_safetensors(tmp_path):
    """Three shards of mixed dtypes, rows written out of order, and the index."""
    values = {
        "a": torch.randn(7, 3),
        "b": torch.randn(5, dtype=torch.bfloat16),
        "c": torch.randn(4, 4).half(),
        "d": torch.randn(9, 3),
    }
    wanted = [NewTensor(n, NAMES[v.dtype], tuple(v.shape)) for n, v in values.items()]
    # Bytes: a 84, b 10, c 32, d 108. Shards of at most 120: a and b, c, d.
    writer = TensorWriter(tmp_path, wanted, max_shard_bytes=120)
    for name, value in values.items():
        for row in reversed(range(len(value))):
            writer.write_rows(name, row, value[row : row + 1])
    writer.close()

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 84 + 10 + 32 + 108
    expected_files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(set(index["weight_map"].values())) == expected_files
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name].equal(values[name])
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    shapes = {name: tensor.shape for name, tensor in read_tensors(tmp_path).items()}
    assert shapes == {name: tuple(value.shape) for name, value in values.items()}


def test_a_small_model_is_one_file_without_an_index(tmp_path):
    """A scalar and a tensor of a narrow dtype before a wide one: the data stays aligned."""
    values = {"narrow": torch.ones(3, dtype=torch.uint8), "wide": torch.randn(2, 2)}
    values["scalar"] = torch.tensor(5.0)
    wanted = [NewTensor(n, NAMES[v.dtype], tuple(v.shape)) for n, v in values.items()]
    writer = TensorWriter(tmp_path, wanted)
    for name, value in values.items():
        writer.write_rows(name, 0, value)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert writer.tensors["wide"].offset % 4 == 0
    read = load_file(tmp_path / "model.safetensors")
    assert all(read[name].equal(value) for name, value in values.items())
