"""Time and memory of a call, and the best that the machine itself can do.

    from measure import ceilings, peak_extra_bytes, timings      # for its siblings; not a program

Memory is what torch's allocator hands out, temporaries included. It does not see the workspaces of
libraries (MKL's on the CPU).
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

# The profiler writes lines for tracing tools to stderr at each start and stop. This level is above
# theirs and keeps them out.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

# Large enough to leave the caches and to fill the machine, small enough for seconds: bytes copied,
# and the side of a square product.
COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
GEMM_SIDE = {"cpu": 2048, "cuda": 8192}
CEILING_REPEATS = 5


class Timing(NamedTuple):
    """Seconds of one call: the 20th percentile, the median and the 80th percentile over
    repeats."""

    p20: float
    median: float
    p80: float


class Ceilings(NamedTuple):
    """The best that this device did in this run: in a copy (bytes read and written), and in a
    square matrix product."""

    bytes_per_second: float
    flops_per_second: float


def timings(call: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> Timing:
    """The times of `repeats` calls, after `warmup` calls that are not measured. On CUDA by the
    device's own clock."""
    for _ in range(warmup):
        call()
    measure = _cuda_seconds if device.type == "cuda" else _host_seconds
    seconds = [measure(call) for _ in range(repeats)]
    return Timing(*(float(value) for value in np.percentile(seconds, [20, 50, 80])))


def _host_seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _cuda_seconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that one call held at any moment beyond what was held before it; what it returns
    counts, existing inputs do not."""
    # Garbage from before that is freed during the call would hide as much of the call's own memory.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory_events = [event for event in events if event.name() == "[memory]"]
    # Every allocation (+) and release (-) in the order of time. The sort is stable, which keeps the
    # order of those within one nanosecond.
    held = peak = 0
    for event in sorted(memory_events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measured anew in each run, because clocks, other processes and libraries differ from run to
    run."""
    source = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = timings(lambda: target.copy_(source), device, CEILING_REPEATS, warmup=1)
    side = GEMM_SIDE[device.type]
    if device.type == "cpu" and dtype == torch.float16:
        # Torch's float16 product on a CPU is hundreds of times slower than one that is converted to
        # float32 first, so it is no ceiling.
        dtype = torch.float32
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(left)
    product = timings(lambda: torch.mm(left, right, out=out), device, CEILING_REPEATS, warmup=1)
    return Ceilings(2 * source.nbytes / copy.p20, 2 * side**3 / product.p20)


def available_bytes(device: torch.device) -> int:
    """Memory that a call may still take on this device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # Linux counts memory that the kernel would give back here; sysconf does not.
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
