"""Reading safetensors files: rows against the safetensors package, and files that are not whole."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ilrec.errors import InputError
from ilrec.weights.tensor_files import (
    DTYPES,
    EMBEDDING,
    HEAD,
    holds_another_head,
    read_header,
    read_tensors,
)


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_rows_are_what_safetensors_wrote(dtype, tmp_path):
    values = torch.arange(60).view(5, 3, 4).to(dtype)
    save_file({"x": values, "scalar": values[1, 1, 1].clone()}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert tensors["x"].rows().equal(values)
    assert tensors["x"].rows(2, 4).equal(values[2:4])
    assert tensors["scalar"].rows().item() == values[1, 1, 1].item()


@pytest.mark.parametrize("same", [True, False])
def test_a_head_is_another_one_when_a_value_differs(same, tmp_path):
    embedding = torch.randn(9, 4)
    head = embedding.clone()
    if not same:
        head[8, 3] += 1
    save_file({f"model.{EMBEDDING}": embedding, HEAD: head}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert holds_another_head(tensors) == (not same)
    del tensors[HEAD]
    assert not holds_another_head(tensors)


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


def test_a_file_that_goes_or_shrinks_while_it_is_read(path):
    tensor = read_header(path)["x"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="the file ended within x"):
        tensor.rows()
    path.unlink()
    with pytest.raises(InputError, match="disappeared while it was read"):
        tensor.rows()


def test_incomplete_directories(path):
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    path.rename(path.with_name(first))
    with pytest.raises(
        InputError, match="neither model.safetensors nor model.safetensors.index.json"
    ):
        read_tensors(path.parent)

    index = path.with_name("model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"x": first, "y": second}}))
    with pytest.raises(InputError, match=f"{second}: no such file"):
        read_tensors(path.parent)
    index.write_text(json.dumps({"weight_map": {"y": first}}))
    with pytest.raises(InputError, match="lacks y, which"):
        read_tensors(path.parent)

    index.unlink()
    path.with_name("pytorch_model.bin").touch()
    with pytest.raises(
        InputError, match="it has pytorch_model.bin: save it once with save_pretrained"
    ):
        read_tensors(path.parent)


def test_empty_tensors_are_refused(tmp_path):
    """ZeRO-3 leaves such tensors in files that are saved without gathering its shards."""
    save_file({"x": torch.zeros(0)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"x is empty \(shape \[0\]\): saved from ZeRO-3 shards"):
        read_tensors(tmp_path)
