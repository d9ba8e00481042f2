"""tools/benchmarks/benchmark_training.py from end to end on a tiny model."""

from __future__ import annotations

import json

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from benchmark_training import main

from ilrec.errors import InputError

TINY = ["--size", "tiny", "--tokens", "12", "--supervised", "3", "8"]
TINY += ["--batch_size", "3", "--rounds", "2"]


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_run_measures_all_and_writes_json_markdown_and_picture(adapter, tmp_path, capsys):
    main([*TINY, "--adapter", adapter, "--output", str(tmp_path)])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]
    report = json.loads(next(tmp_path.glob("training-*-tiny.json")).read_text())
    assert [case["num_supervised"] for case in report["cases"]] == [3, 8]
    for case in report["cases"]:
        check_case(case)
    assert "| stage2 |" in next(tmp_path.glob("*.md")).read_text()
    assert "8 of 12 tokens supervised" in capsys.readouterr().out


def check_case(case: dict) -> None:
    assert [row["contestant"] for row in case["rows"]] == ["sft", "stage1", "stage2", "dpo"]
    # Labels are chosen so that far fewer than the 300 tokens are negatives.
    assert 0 < case["negatives_per_token"] < 300 / 4
    sft, _, _, dpo = case["rows"]
    assert sft["time_ratio"] == sft["memory_ratio"] == 1
    assert dpo["memory_ratio"] > 1 and dpo["operation_share"] == 0
    for row in case["rows"][:3]:
        assert 0 < row["operation_share"] < 1 and len(row["seconds"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--supervised", "256"], r"--supervised: expected numbers from 1 to 255"),
        (["--rounds", "0"], "--rounds: expected a whole number, 1 or more"),
        (["--supervised", "0"], "--supervised: expected a whole number, 1 or more"),
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
