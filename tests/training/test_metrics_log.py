"""metrics.jsonl: which lines a run that goes on keeps, and which ones reports read."""

import json

import pytest

from ilrec.errors import InputError
from ilrec.training.metrics_log import METRICS_LOG, append_line, keep_until, read_steps


@pytest.fixture
def run(tmp_path):
    for step in (1, 2, 3):
        append_line(tmp_path, step, {"loss": 1 / step})
    append_line(tmp_path, 3, {"eval_loss": 0.5})
    return tmp_path


def test_reports_read_the_training_lines(run):
    assert [line["step"] for line in read_steps(run)] == [1, 2, 3]
    with pytest.raises(InputError, match="no such file; expected the output_dir"):
        read_steps(run / "other")


def test_steps_that_are_run_again_are_not_there_twice(run):
    with open(run / METRICS_LOG, "a") as file:
        file.write('{"step": 4, "lo')  # The run was killed here.
    keep_until(run, 2)
    lines = [json.loads(line) for line in (run / METRICS_LOG).read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_fresh_start_keeps_nothing(run):
    keep_until(run, 0)
    assert (run / METRICS_LOG).read_text() == ""
    keep_until(run / "new", 0)
    assert not (run / "new").exists()
