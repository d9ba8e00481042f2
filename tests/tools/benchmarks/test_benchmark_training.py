"""tools/benchmarks/benchmark_training.py from end to end on a tiny model; its DPO step against the
formula."""

from __future__ import annotations

import json
import math

import pytest
import tools_path  # noqa: F401  puts tools/ on the path
import torch
from benchmark_training import (
    dpo_loss,
    main,
    make_batch,
    make_model,
    parse_arguments,
    reference_of,
    stage_output,
)

from ilrec.errors import InputError

TINY = [
    "--size",
    "tiny",
    "--tokens",
    "12",
    "--supervised",
    "3",
    "8",
    "--batch_size",
    "3",
    "--rounds",
    "2",
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_run_measures_all_and_writes_json_markdown_and_picture(adapter, tmp_path, capsys):
    main([*TINY, "--adapter", adapter, "--output", str(tmp_path)])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]
    report = json.loads(next(tmp_path.glob("training-*-tiny.json")).read_text())
    assert [case["num_supervised"] for case in report["cases"]] == [3, 8]
    for case in report["cases"]:
        assert [row["contestant"] for row in case["rows"]] == ["sft", "stage1", "stage2", "dpo"]
        sft, _, _, dpo = case["rows"]
        assert (
            sft["time_ratio"] == sft["memory_ratio"] == 1
            and dpo["memory_ratio"] > 1
            and dpo["operation_share"] == 0
        )
        assert 0 < case["negatives_per_token"] < 300 / 4
        assert all(
            0 < row["operation_share"] < 1 and len(row["seconds"]) == 2 for row in case["rows"][:3]
        )
    assert (
        "| stage2 |" in next(tmp_path.glob("*.md")).read_text()
        and "8 of 12 tokens supervised" in capsys.readouterr().out
    )


def test_objectives_are_the_recipes():
    """With hard negatives stage1 is above sft on the same batch, stage2 adds distillation."""
    arguments = parse_arguments(TINY)
    model = make_model(arguments, CPU).eval()
    batch = make_batch(arguments, model, 8, CPU)
    sft, stage1, stage2 = (
        stage_output(model, stage, batch).loss.item() for stage in ("sft", "stage1", "stage2")
    )
    assert sft < stage1 < stage2


def test_dpo_starts_at_log_two_and_rejects_other_responses():
    arguments = parse_arguments([*TINY, "--adapter", "none"])
    model = make_model(arguments, CPU).eval()
    reference, batch = reference_of(model), make_batch(arguments, model, 3, CPU)
    assert dpo_loss(model, reference, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    prompts, labels = batch["input_ids"][:, :9], batch["labels"][:, 9:]
    logps = [
        m(input_ids=ids).logits.log_softmax(-1)[:, 8:11].gather(2, ids[:, 9:, None]).sum((1, 2))
        for ids in (torch.cat([prompts, labels], 1), torch.cat([prompts, labels.roll(1, 0)], 1))
        for m in (model, reference().__enter__())
    ]
    margins = (logps[0] - logps[1]) - (logps[2] - logps[3])
    assert dpo_loss(model, reference, batch).item() == pytest.approx(
        torch.log1p((-0.1 * margins).exp()).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--supervised", "256"], r"--supervised: expected numbers from 1 to 255"),
        (["--rounds", "0"], "--rounds: expected a positive number"),
        pytest.param(
            ["--size", "8b"],
            "--size 8b: needs a CUDA device",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="needs a machine without CUDA"
            ),
        ),
    ],
)
def test_refusals(words, message, tmp_path):
    with pytest.raises(InputError, match=message):
        main([*words, "--output", str(tmp_path)])
