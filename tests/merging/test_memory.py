"""The command line as users run it: on a model larger than the memory it is given, and killed in
the middle."""

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
LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_AS, ({LIMIT}, {LIMIT}))
sys.argv = ["tools/merge_lora.py", *sys.argv[1:]]
runpy.run_path("tools/merge_lora.py", run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))  # ru_maxrss would count what forked it
"""


def name_of(layer: int) -> str:
    return f"model.layers.{layer}.mlp.up_proj"


def write_model(place: Path, num_layers: int) -> None:
    """base/ of zeros but for some rows of each matrix, and adapter/ on all of them."""
    (place / "base").mkdir()
    (place / "adapter").mkdir()
    tensors = [
        NewTensor(f"{name_of(layer)}.weight", "F32", (INTERMEDIATE, HIDDEN))
        for layer in range(num_layers)
    ]
    writer = TensorWriter(place / "base", tensors)
    torch.manual_seed(0)
    factors = {}
    for layer in range(num_layers):
        writer.write_rows(f"{name_of(layer)}.weight", 5000 + layer, torch.randn(1, HIDDEN))
        factors[f"base_model.model.{name_of(layer)}.lora_A.weight"] = torch.randn(RANK, HIDDEN)
        factors[f"base_model.model.{name_of(layer)}.lora_B.weight"] = torch.randn(
            INTERMEDIATE, RANK
        )
    writer.close()
    save_file(factors, place / "adapter" / "adapter_model.safetensors")
    (place / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    (place / "adapter" / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": RANK,
                "lora_alpha": 8,
                "base_model_name_or_path": str(place / "base"),
            }
        )
    )


def test_three_gigabytes_in_one(tmp_path):
    """And the promise: resident memory at most twice the largest tensor and 300 MB. The rows are
    what the formula says."""
    write_model(tmp_path, LAYERS)
    where = ["--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]
    result = launch("python", "-c", LIMITED, *where, "--workers", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    peak_mib = int(result.stdout.split()[1]) / 1024
    assert peak_mib < 2 * INTERMEDIATE * HIDDEN * 4 / 2**20 + 300
    with (
        safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as merged,
        safe_open(tmp_path / "base" / "model.safetensors", framework="pt") as base,
        safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as adapter,
    ):
        for layer in (0, LAYERS - 1):
            a, b = (
                adapter.get_tensor(f"base_model.model.{name_of(layer)}.lora_{side}.weight")
                for side in "AB"
            )
            rows = slice(4990, 5030)
            expected = (
                base.get_slice(f"{name_of(layer)}.weight")[rows].double()
                + 2.0 * b[rows].double() @ a.double()
            )
            torch.testing.assert_close(
                merged.get_slice(f"{name_of(layer)}.weight")[rows].double(),
                expected,
                rtol=1e-5,
                atol=1e-5,
            )


def test_killed_in_the_middle_leaves_nothing_that_looks_finished(tmp_path):
    """And the same command again, to the end."""
    write_model(tmp_path, 4)
    words, variables = as_user(
        [
            "python",
            "tools/merge_lora.py",
            "--adapter",
            str(tmp_path / "adapter"),
            "--output",
            str(tmp_path / "merged"),
            "--workers",
            "1",
        ],
        {},
    )
    with subprocess.Popen(words, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "merged.tmp" / "model.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.5)
        process.kill()
    assert (
        not (tmp_path / "merged").exists()
        and not (tmp_path / "merged.tmp" / "config.json").exists()
    )
    result = launch(*words)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "merged" / "config.json").exists() and not (tmp_path / "merged.tmp").exists()
