"""Which curves are drawn, and what they are called."""

from __future__ import annotations

from made_reports import PLAIN, SFT, STAGE1, STAGE2

from ilrec.reporting.contents import Run
from ilrec.reporting.panels import training_panels

RUNS = [
    Run("sft", SFT, PLAIN),
    Run("stopped at once", [], PLAIN),
    Run("stage1", STAGE1, PLAIN | {"beta": 0.1}),
    Run("stage2", STAGE2, PLAIN | {"beta": 0.1, "distillation_weight": 0.5}),
]


def curves(runs: list[Run]) -> dict:
    return {panel.title: panel.curves for panel in training_panels(runs)}


def test_each_term_has_a_panel_of_the_runs_that_train_it():
    assert curves(RUNS) == {
        "Cross-entropy": {"sft": ([5, 10], [3.0, 2.0])},
        "Preference loss": {"stage1": ([5, 10], [2.5, 1.5]), "stage2": ([5, 10], [1.6, 1.4])},
        "Distillation loss": {"stage2": ([5, 10], [0.5, 0.25])},
        "Hard negatives per token": {
            "stage1": ([5, 10], [4.0, 2.0]),
            "stage2": ([5, 10], [2.0, 1.0]),
        },
        "Tokens without hard negatives": {
            "stage1": ([5, 10], [0.25, 0.25]),
            "stage2": ([5, 10], [0.25, 0.25]),
        },
        "Validation loss": {"stage2": ([5], [2.25])},
        "Validation NDCG@10": {"stage2": ([5], [0.25])},
    }


def test_runs_without_preference_have_no_panels_of_negatives():
    assert list(curves(RUNS[:2])) == ["Cross-entropy"]
    assert curves(RUNS[1:2]) == {}


def test_without_settings_the_negatives_tell():
    runs = [Run(run.name, run.lines, {}) for run in RUNS]
    assert list(curves(runs)["Cross-entropy"]) == ["sft"]


def test_a_log_without_terms_shows_its_loss():
    """That of tools/experiments/train_dpo.py, for example."""
    assert curves([Run("dpo", [{"step": 1, "loss": 0.7}], {})]) == {
        "Cross-entropy": {"dpo": ([1], [0.7])}
    }


def test_another_metric_is_drawn_where_the_usual_one_is_missing():
    lines = [{"step": 5, "eval_hit@5": 0.5}]
    assert curves([Run("run", lines, PLAIN)]) == {"Validation Hit@5": {"run": ([5], [0.5])}}
