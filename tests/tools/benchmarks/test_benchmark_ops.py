"""tools/benchmarks/benchmark_ops.py from end to end at tiny shapes, as typed by hand; its baselines
against the operation and each other."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tools_path  # noqa: F401  puts tools/ on the path
import torch
from benchmark_baselines import CONTESTANTS, Layout, make_case
from benchmark_ops import Plan, check_agreement, gradients, main, measure_released
from conftest import launch
from measure import Ceilings
from ops.ops_cases import FULL

from ilrec.processes import run_entry

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
TINY = Layout(
    vocab_size=507, hidden_size=33, num_layers=3, device=torch.device("cpu"), dtype=torch.float32
)
OURS = [CONTESTANTS[name] for name in ("row_slab", "reference", "released")]


def test_a_run_measures_all_and_writes_json_markdown_and_picture(tmp_path):
    done = launch(
        "python",
        "tools/benchmarks/benchmark_ops.py",
        "--device",
        "cpu",
        "--vocab_size",
        "507",
        "--hidden_size",
        "33",
        "--num_tokens",
        "7,9",
        "--num_layers",
        "3",
        "--repeats",
        "2",
        "--released",
        "--released_samples",
        "3",
        "--released_length",
        "8",
        "--check_memory",
        "1024",
        "--slab_mib",
        "1",
        "--output",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]
    report = json.loads(next(tmp_path.glob("ops-*-float32.json")).read_text())
    by_default = {name for name, contestant in CONTESTANTS.items() if contestant.in_default}
    assert [part["num_tokens"] for part in report["sizes"]] == [7, 9]
    for part in (*report["sizes"], report["released"]):
        assert part["negatives_per_token"] > 0
        for row in part["rows"]:
            if "not_measured" not in row:
                assert 0 < row["forward_backward"]["p20"] <= row["forward_backward"]["p80"]
                assert (
                    row["forward"]["median"] > 0
                    and row["peak_extra_bytes"] > 0
                    and row["roofline_fraction"] > 0
                )
    assert {row["contestant"] for row in report["sizes"][0]["rows"]} == by_default
    assert [row["contestant"] for row in report["released"]["rows"]] == ["row_slab", "released"]
    assert report["memory"]["within"]
    assert min(report["ceilings"].values()) > 0
    text = next(tmp_path.glob("*.md")).read_text()
    assert (
        "needs a CUDA device" in text
        and "N=7: row_slab against reference:" in text
        and "row_slab against released:" in text
    )
    assert report["summary"][0] in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--contestants", "row_slap"], "did you mean 'row_slab'?"),
        (["--dtype", "int8"], "--dtype: expected one of"),
        (["--num_tokens", "7,x"], "--num_tokens: expected positive numbers"),
        (["--device", "tpu"], "--device: expected cpu or cuda"),
        (["--repeats", "0"], "--repeats: expected a positive number"),
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_samples, length, num_targets", [(7, 1, 1), (3, 6, 2)])
@pytest.mark.parametrize("train_head", [False, True])
def test_ours_naive_and_released_ways_agree(device, num_samples, length, num_targets, train_head):
    layout = dataclasses.replace(TINY, device=torch.device(device), train_head=train_head)
    case = make_case(layout, FULL, num_samples, length, num_targets)
    assert case.num_labels == num_samples * num_targets
    assert set(check_agreement(OURS, case).values()) == {None}
    losses = [float(gradients(contestant, case)[0]) for contestant in OURS]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_contestants_that_differ_end_the_run():
    case = make_case(TINY, FULL, 5)
    broken = dataclasses.replace(
        OURS[1], name="broken", loss=lambda case: OURS[1].loss(case) * 1.001
    )
    with pytest.raises(RuntimeError, match="broken and row_slab should compute the same: loss"):
        check_agreement([OURS[0], broken], case)


@pytest.mark.parametrize("room, measured_samples", [(10**12, 4), (170_000, 2), (1, None)])
def test_released_way_runs_on_as_many_samples_as_fit(monkeypatch, room, measured_samples):
    """One sample of 6 tokens holds (K + 2) * 6 * V logits of 4 bytes, about 60 kB here."""
    monkeypatch.setattr("benchmark_ops.available_bytes", lambda device: room)
    plan = Plan(TINY, FULL, OURS, [7], repeats=1, ceilings=Ceilings(1e9, 1e9))
    ours, released = measure_released(plan, num_samples=4, length=6)["rows"]
    assert ours["num_tokens"] == 20
    if measured_samples is None:
        assert released["not_measured"].startswith("needs about")
        return
    assert released["num_tokens"] == 20 and released["forward_backward"]["median"] > 0
    remark = None if measured_samples == 4 else "measured at B=2, scaled linearly to B=4"
    assert released.get("remark") == remark


def test_what_cannot_run_gives_its_reason(monkeypatch):
    def elsewhere(case, backend):
        raise ValueError(f"backend: {backend} needs another machine")

    monkeypatch.setattr("benchmark_baselines.fused_loss", elsewhere)
    case = make_case(TINY, FULL, 5)
    huge = dataclasses.replace(OURS[1], name="huge", logits_held=lambda case: 10**15)
    failing = dataclasses.replace(
        CONTESTANTS["torch_linear_ce"], name="failing", loss=lambda case: 1 / 0
    )
    reasons = check_agreement([OURS[0], huge, failing, CONTESTANTS["vocab_stream"]], case)
    assert reasons["row_slab"] is None
    assert reasons["huge"].startswith("needs about")
    assert reasons["failing"] == "failed: division by zero"
    assert reasons["vocab_stream"] == "not available: backend: vocab_stream needs another machine"
