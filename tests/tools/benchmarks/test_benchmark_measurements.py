"""The measurements of tools/benchmarks/benchmark_ops.py: contestants that agree, those that do not,
and those that cannot run."""

from __future__ import annotations

import dataclasses

import pytest
import tools_path  # noqa: F401  (puts tools/ on the path)
import torch
from benchmark_baselines import CONTESTANTS
from benchmark_case import Layout, make_case
from benchmark_measurements import Plan, check_agreement, gradients, measure_released
from measure import Ceilings
from ops.ops_cases import FULL

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
    monkeypatch.setattr("benchmark_measurements.available_bytes", lambda device: room)
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
