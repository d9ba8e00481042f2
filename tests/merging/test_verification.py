"""Verification passes what is right, for every kind of adapter, and refuses what is wrong by a
little."""

from __future__ import annotations

from pathlib import Path

import pytest
from adapter_kinds import KINDS
from safetensors.torch import load_file, save_file
from written_adapters import run_merge, write_adapter, write_base

from ilrec.errors import InputError
from ilrec.merging.sources import open_source
from ilrec.merging.verification import LogitComparison, verify


def verify_merged(directory: Path) -> LogitComparison:
    with open_source(str(directory / "adapter")) as source:
        return verify(directory / "merged", source)


@pytest.mark.parametrize(("name", "tied", "settings"), KINDS, ids=[kind[0] for kind in KINDS])
def test_right_merges_pass(name, tied, settings, tmp_path):
    write_adapter(write_base(tmp_path / "base", tied), tmp_path / "adapter", **settings)
    run_merge(tmp_path / "adapter", tmp_path / "merged")
    found = verify_merged(tmp_path)
    # The limit is 4 times the noise (TOLERANCE).
    assert 0 < found.difference < 3 * found.noise < 1e-4
    assert found.agreement == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_passes(dtype, tmp_path):
    write_adapter(write_base(tmp_path / "base"), tmp_path / "adapter")
    run_merge(tmp_path / "adapter", tmp_path / "merged", dtype=dtype)
    # Larger than float32's rounding: the narrow dtype was really compared.
    assert verify_merged(tmp_path).max_difference > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forgotten_update_of_one_matrix_fails(dtype, tmp_path):
    base = write_base(tmp_path / "base")
    write_adapter(base, tmp_path / "adapter")
    weights = run_merge(tmp_path / "adapter", tmp_path / "merged", dtype=dtype)
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = load_file(base / "model.safetensors")[name].to(weights[name].dtype)
    save_file(weights, tmp_path / "merged" / "model.safetensors")
    with pytest.raises(InputError, match="does not compute what .* computes"):
        verify_merged(tmp_path)
