"""The settings of the evaluation while training, and what contradicts each other."""

import pytest

from ilrec.config.evaluation import NUM_BEAMS, EvaluationConfig
from ilrec.errors import InputError


@pytest.mark.parametrize(
    "metric, cutoff", [("loss", 0), ("hit@1", 1), ("ndcg@10", 10), (f"ndcg@{NUM_BEAMS}", NUM_BEAMS)]
)
def test_metrics_are_read(metric, cutoff):
    assert EvaluationConfig(eval_metric=metric).cutoff == cutoff


@pytest.mark.parametrize("metric", ["ndcg", "ndcg@0", "ndcg@21", "hit@1000", "mrr@10", "NDCG@10 "])
def test_other_metrics_are_refused(metric):
    with pytest.raises(InputError, match="^eval_metric: expected loss, or hit@K or ndcg@K with K"):
        EvaluationConfig(eval_metric=metric)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"save_best": True}, "^save_best: expected false .* set eval_strategy to steps or epoch"),
        (
            {"eval_strategy": "epoch", "early_stopping_patience": 2},
            "^early_stopping_patience: expected 0 without save_best, .*; set save_best: true",
        ),
    ],
)
def test_what_needs_an_evaluation_is_refused_without_it(fields, message):
    with pytest.raises(InputError, match=message):
        EvaluationConfig(**fields)
