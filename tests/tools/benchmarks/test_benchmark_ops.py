"""tools/benchmarks/benchmark_ops.py from end to end at tiny shapes, as typed by hand."""

from __future__ import annotations

import json

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from benchmark_baselines import CONTESTANTS
from benchmark_ops import main
from conftest import launch

from ilrec.processes import run_entry

SIZES = {
    "--device": "cpu",
    "--vocab_size": "507",
    "--hidden_size": "33",
    "--num_tokens": "7,9",
    "--num_layers": "3",
    "--repeats": "2",
    "--released_samples": "3",
    "--released_length": "8",
    "--check_memory": "1024",
    "--slab_mib": "1",
}


def test_a_run_measures_all_and_writes_json_markdown_and_picture(tmp_path):
    words = [word for pair in SIZES.items() for word in pair]
    script = "tools/benchmarks/benchmark_ops.py"
    done = launch("python", script, *words, "--released", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]

    report = json.loads(next(tmp_path.glob("ops-*-float32.json")).read_text())
    by_default = {name for name, contestant in CONTESTANTS.items() if contestant.in_default}
    assert [part["num_tokens"] for part in report["sizes"]] == [7, 9]
    assert {row["contestant"] for row in report["sizes"][0]["rows"]} == by_default
    assert [row["contestant"] for row in report["released"]["rows"]] == ["row_slab", "released"]
    for part in (*report["sizes"], report["released"]):
        assert part["negatives_per_token"] > 0
        for row in part["rows"]:
            if "not_measured" not in row:
                check_row(row)
    assert report["memory"]["within"]
    assert min(report["ceilings"].values()) > 0

    text = next(tmp_path.glob("*.md")).read_text()
    assert "needs a CUDA device" in text
    assert "N=7: row_slab against reference:" in text and "row_slab against released:" in text
    assert report["summary"][0] in done.stdout


def check_row(row: dict) -> None:
    assert 0 < row["forward_backward"]["p20"] <= row["forward_backward"]["p80"]
    assert row["forward"]["median"] > 0
    assert row["peak_extra_bytes"] > 0
    assert row["roofline_fraction"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--contestants", "row_slap"], "did you mean 'row_slab'?"),
        (["--dtype", "int8"], "--dtype: expected one of"),
        (["--num_tokens", "7,x"], "--num_tokens: expected positive numbers"),
        (["--device", "tpu"], "--device: expected cpu or cuda"),
        (["--repeats", "0"], "--repeats: expected a whole number, 1 or more, got '0'"),
        (["--slab_mib=-1"], "--slab_mib: expected a whole number, 0 or more, got '-1'"),
        (["--check_memory", "0"], "--check_memory: expected a whole number, 1 or more"),
        pytest.param(
            ["--device", "cuda"],
            "sees no CUDA device",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="needs a machine without CUDA"
            ),
        ),
    ],
)
def test_bad_arguments_end_with_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["benchmark_ops.py", *arguments, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        run_entry(main)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
