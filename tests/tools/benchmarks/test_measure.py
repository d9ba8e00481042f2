"""Time and memory as tools/benchmarks/measure.py sees them: known allocations give the known
peak."""

from __future__ import annotations

import time

import pytest
import tools_path  # noqa: F401  puts tools/ on the path
import torch
from measure import available_bytes, ceilings, peak_extra_bytes, timings

MIB = 2**20
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


def zeros(mebibytes: int, device: str) -> torch.Tensor:
    return torch.zeros(mebibytes * MIB, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [1, 2])
def test_what_is_held_together_adds_up(device, size):
    def two_together() -> torch.Tensor:
        first = zeros(3 * size, device)
        second = zeros(2 * size, device)
        return first[:1] + second[:1]

    assert peak_extra_bytes(two_together, torch.device(device)) == pytest.approx(
        5 * size * MIB, abs=1024
    )


@pytest.mark.parametrize("device", DEVICES)
def test_freed_memory_is_honoured_and_temporaries_count(device):
    def one_after_the_other() -> None:
        zeros(4, device)  # freed at once, and still the peak
        zeros(3, device)

    assert peak_extra_bytes(one_after_the_other, torch.device(device)) == 4 * MIB


@pytest.mark.parametrize("device", DEVICES)
def test_existing_inputs_do_not_count_but_their_gradients_do(device):
    inputs = torch.zeros(MIB, device=device, requires_grad=True)  # 4 MiB

    def gradient() -> torch.Tensor:
        return torch.autograd.grad((inputs * 2).sum(), inputs)[0]

    # The product, then its gradient in its place; the sum's gradient is expanded, not stored.
    assert peak_extra_bytes(gradient, torch.device(device)) == pytest.approx(4 * MIB, abs=4096)


@pytest.mark.parametrize("call", [lambda: None, lambda: zeros(1, "cpu").sum().item()])
def test_a_function_that_keeps_nothing_leaves_nothing_behind(call):
    first = peak_extra_bytes(call, torch.device("cpu"))
    assert peak_extra_bytes(call, torch.device("cpu")) == first


def test_timings_leave_the_warmup_out_and_order_their_percentiles():
    pauses = iter([0.2, 0.01, 0.02, 0.03])
    timing = timings(lambda: time.sleep(next(pauses)), torch.device("cpu"), repeats=3, warmup=1)
    assert 0.01 <= timing.p20 <= timing.median <= timing.p80 < 0.15
    assert timing.median == pytest.approx(0.02, abs=0.01)


def test_ceilings_and_available_memory_are_of_this_world():
    found = ceilings(torch.device("cpu"), torch.float32)
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e8 < found.flops_per_second < 1e15
    assert available_bytes(torch.device("cpu")) > MIB
