"""NaN on one of two ZeRO-3 ranks ends both with one message, before any optimizer step or
checkpoint has used it."""

from pathlib import Path

import pytest
from command_words import flags
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
    run = tmp_path / "run"
    words = flags(
        poison=kind,
        errors=tmp_path,
        ds_config="ds_configs/zero3_cpu.json",
        config="ilrec/recipes/stage1.yaml",
        data=data,
        model=base,
        output_dir=run,
        num_readout_layers=2,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
        logging_steps=1,
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_metric="loss",
    )
    script = Path(__file__).with_name("nan_rank.py")
    result = launch("deepspeed", str(script), *words, timeout=180)
    output = result.stdout + result.stderr
    assert result.returncode != 0, output[-6000:]

    # Both ranks end with the same message, which names rank 1 and its layers.
    assert (tmp_path / "error-0.txt").exists(), output[-6000:]
    message, other = [(tmp_path / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert message == other
    assert message.startswith(f"{when}: NaN or inf in readout layer L-1's hidden states (rank 1: ")
    assert "; last layer's hidden states (rank 1: " in message
    assert "L-2" not in message
    assert "rank 0" not in message
    assert output.count(f"error: {message}") == 1
    assert "Traceback" not in output
    assert "exits with return code = 2" in output

    # The bad micro-batch is kept, and nothing else was written.
    kept = load_file(run / "nonfinite" / "step-1-rank-1.safetensors")
    assert f"rank 1: {', '.join(map(str, kept['sample_ids'].tolist()))}" in message
    assert kept["input_ids"].shape == kept["labels"].shape
    assert not list(run.glob("checkpoint-*"))
    assert not (run / "final").exists()
    metrics = run / "metrics.jsonl"
    assert len(metrics.read_text().splitlines() if metrics.exists() else []) == lines
