"""NaN on one of two ZeRO-3 ranks ends both with one message, before any optimizer step or
checkpoint is made of it."""

from pathlib import Path

import pytest
from conftest import launch
from safetensors.torch import load_file

pytestmark = pytest.mark.launch


@pytest.mark.parametrize(
    ("kind", "when", "lines"),
    [("training", "step 1", 0), ("evaluation", "evaluation after step 1", 1)],
)
def test_nan_on_one_rank_ends_both(data, base, tmp_path, kind, when, lines):
    """Layer 3 of 4 writes NaN, so that layer L-2 is finite. Training: in the second of two
    accumulated micro-batches."""
    result = launch(
        "deepspeed",
        str(Path(__file__).with_name("nan_rank.py")),
        "--poison",
        kind,
        "--errors",
        str(tmp_path),
        "--ds_config",
        "ds_configs/zero3_cpu.json",
        "--config",
        "ilrec/recipes/stage1.yaml",
        "--data",
        str(data),
        "--model",
        str(base),
        "--output_dir",
        str(tmp_path / "run"),
        "--num_readout_layers",
        "2",
        "--max_steps",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--gradient_accumulation_steps",
        "2",
        "--per_device_eval_batch_size",
        "2",
        "--logging_steps",
        "1",
        "--save_steps",
        "1",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        timeout=180,
    )
    said = result.stdout + result.stderr
    assert result.returncode != 0, said[-6000:]
    assert (tmp_path / "error-0.txt").exists(), said[-6000:]
    texts = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1]
    assert texts[0].startswith(f"{when}: NaN or inf in readout layer L-1's hidden states (rank 1: ")
    assert (
        "; last layer's hidden states (rank 1: " in texts[0]
        and "L-2" not in texts[0]
        and "rank 0" not in texts[0]
    )
    assert said.count(f"error: {texts[0]}") == 1 and "Traceback" not in said
    assert "exits with return code = 2" in said
    kept = load_file(tmp_path / "run" / "nonfinite" / "step-1-rank-1.safetensors")
    assert (
        f"rank 1: {', '.join(map(str, kept['sample_ids'].tolist()))}" in texts[0]
        and kept["input_ids"].shape == kept["labels"].shape
    )
    assert (
        not list((tmp_path / "run").glob("checkpoint-*"))
        and not (tmp_path / "run" / "final").exists()
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines() if metrics.exists() else []) == lines
