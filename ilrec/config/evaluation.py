"""Settings of the evaluation on validation users while a model is trained, and of what follows from
it: which checkpoint is the best, and when training stops early."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ilrec.config.settings import Section, require, setting

# Items ranked for each user. ilrec/rank.py's default, and the width of every evaluation while
# training, so that both measure the same.
NUM_BEAMS = 20
# The metrics of a ranking: name@K.
RANKING_METRIC = re.compile(r"(hit|ndcg)@([1-9][0-9]?)")


@dataclass
class EvaluationConfig(Section):
    """The evaluation while training. transformers.TrainingArguments has the first three fields,
    too."""

    eval_strategy: str = setting(
        "no",
        "no, steps or epoch: when the model is evaluated on validation users",
        choices=("no", "steps", "epoch"),
    )
    eval_steps: int = setting(
        500, "steps between evaluations with eval_strategy: steps", at_least=1
    )
    per_device_eval_batch_size: int = setting(16, "users per rank and batch", at_least=1)
    eval_metric: str = setting(
        "ndcg@10",
        f"hit@K or ndcg@K (K up to {NUM_BEAMS}), as ilrec/rank.py --split valid measures them; or "
        "loss, on the validation items",
    )
    eval_users: int = setting(
        2000,
        "validation users, evenly spread over all and the same in each evaluation; 0: all",
        at_least=0,
    )
    save_best: bool = setting(
        False,
        "keep the checkpoint with the best eval_metric, and make final/ from it instead of from "
        "the last step",
    )
    early_stopping_patience: int = setting(
        0,
        "stop after so many evaluations in a row without a new best; needs save_best; 0: do not",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.eval_metric == "loss" or 1 <= self.cutoff <= NUM_BEAMS,
            "eval_metric",
            self.eval_metric,
            f"loss, or hit@K or ndcg@K with K from 1 to {NUM_BEAMS}, the items that are ranked",
        )
        require(
            not self.save_best or self.eval_strategy != "no",
            "save_best",
            self.save_best,
            "false without an evaluation that tells which one is best; set eval_strategy to steps "
            "or epoch",
        )
        require(
            not self.early_stopping_patience or self.save_best,
            "early_stopping_patience",
            self.early_stopping_patience,
            "0 without save_best, because final/ would be the weights after the evaluations that "
            "were worse; set save_best: true",
        )

    @property
    def cutoff(self) -> int:
        """The K of a ranking metric; 0 if eval_metric is none."""
        match = RANKING_METRIC.fullmatch(self.eval_metric)
        return int(match[2]) if match else 0
