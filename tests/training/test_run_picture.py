"""The picture of a set of runs: what is drawn where, and the kinds of file that it can be."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from ilrec.errors import InputError
from ilrec.training.run_picture import check_picture, draw_bars, draw_runs, draw_training

RUNS = {
    "stage1": [
        {"step": 5, "loss": 3.0, "loss/preference": 3.0, "negatives/per_token": 4.0},
        {"step": 10, "loss": 2.0, "loss/preference": 2.0, "negatives/per_token": 2.0},
    ],
    "stopped at once": [],
    "stage2": [
        {"step": 5, "loss": 2.5, "loss/preference": 1.5, "loss/distillation": 1.0},
    ],
}
METRICS = {"popularity": {"hit@5": 0.1, "hit@10": 0.2}, "stage2": {"hit@5": 0.3, "hit@10": 0.5}}


def test_runs_follow_each_other_and_untrained_terms_are_left_out():
    losses, negatives = Figure().subplots(1, 2)
    draw_training(losses, negatives, RUNS)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in losses.get_lines()}
    assert drawn == {
        "stage1: preference": [[5, 3], [10, 2]],
        "stage2: preference": [[15, 1.5]],
        "stage2: distillation": [[15, 1]],
    }
    assert [line.get_label() for line in negatives.get_lines()] == list(RUNS)


def test_each_model_has_its_bars_around_its_name():
    axes = Figure().subplots()
    draw_bars(axes, METRICS)
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    assert bars == [
        (pytest.approx(-0.2), 0.1),
        (pytest.approx(0.8), 0.3),
        (pytest.approx(0.2), 0.2),
        (pytest.approx(1.2), 0.5),
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(METRICS)


@pytest.mark.parametrize("suffix", [".png", ".PDF", ".svg"])
def test_the_suffix_says_which_kind(suffix, tmp_path):
    path = tmp_path / f"report{suffix}"
    check_picture(path)
    draw_runs(METRICS, RUNS, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    starts = {".png": b"\x89PNG", ".PDF": b"%PDF", ".svg": b"<?xml"}
    assert path.read_bytes().startswith(starts[suffix])


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected a name that ends in one of .*pdf, .*png"):
        check_picture(tmp_path / "report.doc")
