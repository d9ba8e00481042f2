"""The fingerprint of a model's weights: what it depends on and what it does not.

tests/training/test_identity.py has that of a file of another format (file_fingerprint).
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from ilrec.weights.fingerprint import weights_fingerprint
from ilrec.weights.tensor_files import NAMES
from ilrec.weights.tensor_writer import NewTensor, TensorWriter

TENSORS = {"a": torch.arange(600.0).view(30, 20), "b": torch.ones(7, dtype=torch.bfloat16)}


def fingerprint_of(tensors, directory) -> str:
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    return weights_fingerprint(directory)


def test_shards_do_not_change_it(tmp_path):
    whole = fingerprint_of(TENSORS, tmp_path / "whole")
    (tmp_path / "shards").mkdir()
    wanted = [NewTensor(n, NAMES[t.dtype], tuple(t.shape)) for n, t in TENSORS.items()]
    writer = TensorWriter(tmp_path / "shards", wanted, max_shard_bytes=1)
    for name, tensor in TENSORS.items():
        writer.write_rows(name, 0, tensor)
    writer.close()
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 2
    assert weights_fingerprint(tmp_path / "shards") == whole


def test_name_dtype_shape_and_values_change_it(tmp_path):
    a, b = TENSORS["a"], TENSORS["b"]
    other_value = a.clone()
    other_value[len(a) // 2, 0] += 1  # the sample begins with the middle row
    variants = [
        TENSORS,
        {"a": a, "c": b},
        {"a": a, "b": b.float()},
        {"a": a.view(20, 30), "b": b},
        {"a": other_value, "b": b},
    ]
    found = {fingerprint_of(v, tmp_path / str(number)) for number, v in enumerate(variants)}
    assert len(found) == len(variants)
