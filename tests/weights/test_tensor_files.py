"""Files against the safetensors package; blocks; what is no whole file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ilrec.errors import InputError
from ilrec.weights.tensor_files import (
    DTYPES,
    NAMES,
    NewTensor,
    TensorWriter,
    read_header,
    read_tensors,
)


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_rows_are_what_safetensors_reads(dtype, tmp_path):
    values = torch.arange(60).view(5, 3, 4).to(dtype)
    save_file({"x": values, "scalar": values[1, 1, 1].clone()}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert tensors["x"].rows().equal(values) and tensors["x"].rows(2, 4).equal(values[2:4])
    assert tensors["scalar"].rows().item() == values[1, 1, 1].item()


def test_written_files_are_read_by_safetensors(tmp_path):
    """Three shards of mixed dtypes, rows written out of order, and the index."""
    values = {
        "a": torch.randn(7, 3),
        "b": torch.randn(5, dtype=torch.bfloat16),
        "c": torch.randn(4, 4).half(),
        "d": torch.randn(9, 3),
    }
    writer = TensorWriter(
        tmp_path,
        [NewTensor(n, NAMES[v.dtype], tuple(v.shape)) for n, v in values.items()],
        max_shard_bytes=120,
    )
    for name, value in values.items():
        for row in reversed(range(len(value))):
            writer.write_rows(name, row, value[row : row + 1])
    writer.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name].equal(values[name])
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert {name: tensor.shape for name, tensor in read_tensors(tmp_path).items()} == {
        n: tuple(v.shape) for n, v in values.items()
    }


@pytest.fixture
def path(tmp_path):
    save_file({"x": torch.randn(50, 4)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_truncated_and_damaged_files(path):
    whole = path.read_bytes()
    for content, message in (
        (whole[:-100], r"has \d+ bytes, its header says \d+: truncated"),
        (whole[:20], "not a safetensors file"),
        (b"", "not a safetensors file"),
        (b"\xff" * 8 + whole[8:], "promise a header of"),
        (whole.replace(b'"F32"', b'"F8Z"'), "x has dtype F8Z"),
        (whole.replace(b"[50,4]", b"[51,4]"), "does not fill"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_header(path)


def test_incomplete_directories(path):
    path.rename(path.with_name("model-00001-of-00002.safetensors"))
    with pytest.raises(
        InputError, match="neither model.safetensors nor model.safetensors.index.json"
    ):
        read_tensors(path.parent)
    index = path.with_name("model.safetensors.index.json")
    index.write_text(
        json.dumps(
            {
                "weight_map": {
                    "x": "model-00001-of-00002.safetensors",
                    "y": "model-00002-of-00002.safetensors",
                }
            }
        )
    )
    with pytest.raises(InputError, match="model-00002-of-00002.safetensors: no such file"):
        read_tensors(path.parent)
    index.write_text(json.dumps({"weight_map": {"y": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(InputError, match="lacks y, which"):
        read_tensors(path.parent)
    index.unlink()
    path.with_name("pytorch_model.bin").touch()
    with pytest.raises(
        InputError, match="it has pytorch_model.bin: save it once with save_pretrained"
    ):
        read_tensors(path.parent)


def test_empty_tensors_are_refused(tmp_path):
    """What ZeRO-3 leaves where nobody gathered."""
    save_file({"x": torch.zeros(0)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"x is empty \(shape \[0\]\): saved from ZeRO-3 shards"):
        read_tensors(tmp_path)
