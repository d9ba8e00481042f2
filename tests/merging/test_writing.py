"""The jobs that write a model: all of them run, or the first error ends the work."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from ilrec.merging.writing import run_jobs


def test_every_job_runs_and_torch_has_its_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    done = []

    def job(number: int) -> int:
        assert torch.get_num_threads() == 1
        done.append(number)
        return 10

    run_jobs([partial(job, number) for number in range(20)], 200, workers=3)
    assert sorted(done) == list(range(20))
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


def test_the_first_error_ends_the_work():
    done = []

    def fail() -> int:
        raise OSError("disk full")

    def work() -> int:
        time.sleep(0.01)
        done.append(1)
        return 1

    # One thread takes the jobs in their order. It may take some more before the error is seen.
    with pytest.raises(OSError, match="disk full"):
        run_jobs([fail, *[work] * 500], 500, workers=1)
    assert len(done) < 500
