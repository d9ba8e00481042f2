"""The command line as users run it: on a model larger than the memory that it is given, and killed
in the middle."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, as_user, launch
from safetensors import safe_open
from safetensors.torch import save_file

from ilrec.weights.tensor_writer import NewTensor, TensorWriter

pytestmark = pytest.mark.launch
# 18 matrices of 11008 x 4096 in float32, 180 MB each: 3 GB, under a limit of 1 GB of addresses
# (which torch's libraries count in).
LAYERS, HIDDEN, INTERMEDIATE, RANK, LIMIT = 18, 4096, 11008, 4, 2**30
# Prints the peak of resident memory at the end. The kernel's VmHWM is read, because ru_maxrss would
# also count the process that forked this one.
LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))
sys.argv = ["tools/merge_lora.py", *sys.argv[1:]]
runpy.run_path("tools/merge_lora.py", run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def module_name(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj"


def factor_name(layer: int, side: str) -> str:
    return f"base_model.model.{module_name(layer)}.lora_{side}.weight"


def write_model(place: Path, num_layers: int) -> None:
    """base/, whose matrices are 0 but for one row each, and adapter/ on all of them."""
    (place / "base").mkdir()
    (place / "adapter").mkdir()
    tensors = []
    for layer in range(num_layers):
        tensors.append(NewTensor(f"{module_name(layer)}.weight", "F32", (INTERMEDIATE, HIDDEN)))
    writer = TensorWriter(place / "base", tensors)
    torch.manual_seed(0)
    factors = {}
    for layer in range(num_layers):
        writer.write_rows(f"{module_name(layer)}.weight", 5000 + layer, torch.randn(1, HIDDEN))
        factors[factor_name(layer, "A")] = torch.randn(RANK, HIDDEN)
        factors[factor_name(layer, "B")] = torch.randn(INTERMEDIATE, RANK)
    writer.close()
    save_file(factors, place / "adapter" / "adapter_model.safetensors")
    (place / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "base_model_name_or_path": str(place / "base"),
    }
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def test_three_gigabytes_in_one(tmp_path):
    """Resident memory is at most twice the largest tensor and 300 MB, and rows are what the formula
    gives in float64."""
    write_model(tmp_path, LAYERS)
    where = ["--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]
    result = launch("python", "-c", LIMITED, *where, "--workers", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    peak_mib = int(result.stdout.split()[1]) / 1024
    assert peak_mib < 2 * INTERMEDIATE * HIDDEN * 4 / 2**20 + 300

    base_file = tmp_path / "base" / "model.safetensors"
    adapter_file = tmp_path / "adapter" / "adapter_model.safetensors"
    merged_file = tmp_path / "merged" / "model.safetensors"
    rows = slice(4990, 5030)
    with (
        safe_open(base_file, framework="pt") as base,
        safe_open(adapter_file, framework="pt") as adapter,
        safe_open(merged_file, framework="pt") as merged,
    ):
        for layer in (0, LAYERS - 1):
            name = f"{module_name(layer)}.weight"
            a = adapter.get_tensor(factor_name(layer, "A")).double()
            b = adapter.get_tensor(factor_name(layer, "B")).double()
            # The scaling is 8 / 4.
            expected = base.get_slice(name)[rows].double() + 2.0 * b[rows] @ a
            actual = merged.get_slice(name)[rows].double()
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_killed_in_the_middle_leaves_nothing_that_looks_finished(tmp_path):
    """And the same command again comes to its end."""
    write_model(tmp_path, 4)
    output, unfinished = tmp_path / "merged", tmp_path / "merged.tmp"
    command = ["python", "tools/merge_lora.py", "--workers", "1"]
    command += ["--adapter", str(tmp_path / "adapter"), "--output", str(output)]
    words, variables = as_user(command, {})
    with subprocess.Popen(words, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL) as process:
        while not (unfinished / "model.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        process.kill()
    assert not output.exists()
    assert not (unfinished / "config.json").exists()

    result = launch(*words)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (output / "config.json").exists()
    assert not unfinished.exists()
