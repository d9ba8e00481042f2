"""Evaluation while training: the ranking of validation users, which checkpoint is the best, and
when to stop early.

The ranking runs on the model that is being trained, sharded or not, and gives what
`ilrec/rank.py --split valid` gives for a checkpoint of that step. It leaves no trace in training: a
run with evaluations has the weights of one without.

The log of the Trainer's state is the only memory of earlier evaluations. Every checkpoint has it,
so a resumed run knows its best value and its patience.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ilrec.config.evaluation import NUM_BEAMS, EvaluationConfig
from ilrec.errors import InputError
from ilrec.items.trie import ItemTrie
from ilrec.ranking.candidates import choose_candidates
from ilrec.ranking.case_lists import of_some_users, rank_cases
from ilrec.ranking.metrics import ranking_metrics, target_ranks_from_lists
from ilrec.ranking.score_head import float32_scores
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prefixes import EvaluationSamples
from ilrec.samples.task import RecommendationTask
from ilrec.training.checkpoints import checkpoint_at
from ilrec.training.manifest import MANIFEST
from ilrec.training.together import agreed

logger = logging.getLogger("ilrec.train")


@dataclass(frozen=True)
class ValidationRanking:
    """The validation users and the protocol under which they are ranked.

    trie: on the device of the model. candidates: all or unseen (ilrec/ranking/candidates.py).
    """

    samples: EvaluationSamples
    trie: ItemTrie
    pad_token_id: int
    candidates: str
    cutoff: int
    batch_size: int

    def measure(self, model: Any) -> dict[str, float]:
        """{"hit@K": ..., "ndcg@K": ...}, the same on every rank. Every rank calls it.

        model: the Trainer's, without the wrappers of DDP and DeepSpeed. Raises InputError if a
        score is NaN.
        """
        with _ready_to_rank(model):
            items_CK, scores_CK = rank_cases(
                model,
                self.samples,
                self.trie,
                self.pad_token_id,
                NUM_BEAMS,
                self.batch_size,
                self.trie.leaf_items.device,
                self.candidates,
                synced_ranks=is_deepspeed_zero3_enabled(),
            )
        if scores_CK.isnan().any():
            raise InputError(
                "the scores of the validation items are NaN. Lower learning_rate or max_grad_norm, "
                "and set dtype: bfloat16 if it is float16"
            )
        target_ranks = target_ranks_from_lists(
            items_CK.numpy(), scores_CK.numpy(), self.samples.cases
        )
        return ranking_metrics(target_ranks, (self.cutoff,))


@contextlib.contextmanager
def _ready_to_rank(model: Any) -> Iterator[None]:
    """Inside, the model computes as ilrec/rank.py has it: without dropout, scores in float32."""
    was_training = model.training
    # accelerate puts a forward with autocast on the object. The class's own is below it.
    with_autocast = vars(model).pop("forward", None)
    model.eval()
    try:
        with float32_scores(model):
            yield
    finally:
        model.train(was_training)
        if with_autocast is not None:
            model.forward = with_autocast


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a run."""

    step: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4f} after step {self.step}"


class Evaluation(TrainerCallback):
    """When a run is evaluated, which of its evaluations is the best, and what follows from it."""

    def __init__(self, config: EvaluationConfig, ranking: ValidationRanking | None) -> None:
        """ranking: None if eval_metric is the loss, which the Trainer itself measures."""
        self.config = config
        self.ranking = ranking

    def done(self, log_history: Sequence[Mapping[str, Any]]) -> list[Evaluated]:
        """The evaluations in the log of a Trainer's state, oldest first."""
        metric = self.config.eval_metric
        name = f"eval_{metric}"
        return [Evaluated(line["step"], metric, line[name]) for line in log_history if name in line]

    def best(self, state: TrainerState) -> Evaluated | None:
        """The best evaluation so far, the first of equal ones. None if the best is not kept."""
        done = self.done(state.log_history)
        if not self.config.save_best or not done:
            return None
        choose = min if self.config.eval_metric == "loss" else max
        return choose(done, key=lambda evaluated: evaluated.value)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = self.best(state)
        if best is None:
            return
        checkpoint = checkpoint_at(str(args.output_dir), best.step)
        if not agreed(lambda: (checkpoint / MANIFEST).exists()):
            logger.warning(
                "%s is not there, which was the best (%s); the best is now sought among the "
                "evaluations from step %d on",
                checkpoint,
                best,
                state.global_step,
            )
            name = f"eval_{best.metric}"
            state.log_history = [line for line in state.log_history if name not in line]
            return
        logger.info("the best so far: %s", best)
        self._stop_if_patience_is_over(state, control, best)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The Trainer evaluates at the end of an epoch after it has saved its last step. A run that
        # is killed in that evaluation would never make up for it. So it comes before.
        if self.config.eval_strategy == "epoch":
            is_last = state.global_step >= state.max_steps
            control.should_evaluate = is_last or float(state.epoch or 0).is_integer()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_evaluate = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        latest = self.done(state.log_history)[-1]
        best = self.best(state)
        logger.info("%s%s", latest, " (the best so far)" if latest == best else "")
        if best is None:
            return
        # The Trainer saves after an evaluation. save_steps need not know of it.
        control.should_save = control.should_save or latest == best
        self._stop_if_patience_is_over(state, control, best)

    def _stop_if_patience_is_over(
        self, state: TrainerState, control: TrainerControl, best: Evaluated
    ) -> None:
        patience = self.config.early_stopping_patience
        num_worse = sum(done.step > best.step for done in self.done(state.log_history))
        if patience and num_worse >= patience:
            control.should_training_stop = True
            logger.info("%d evaluations without a better one: training ends", num_worse)


def validation_samples(
    config: EvaluationConfig, task: RecommendationTask, builder: SampleBuilder
) -> EvaluationSamples:
    """The validation cases of the same eval_users users in every evaluation."""
    cases = of_some_users(task.dataset.evaluation("valid"), config.eval_users)
    return EvaluationSamples(cases, builder)


def make_evaluation(
    config: EvaluationConfig,
    task: RecommendationTask,
    samples: EvaluationSamples,
    trie: Callable[[], ItemTrie],
    pad_token_id: int,
    device: torch.device,
) -> Evaluation:
    """The evaluation of `samples` that the settings ask for. trie: makes that of all items, for a
    ranking. device: of the model."""
    ranking = None
    if config.eval_metric != "loss":
        ranking = ValidationRanking(
            samples=samples,
            trie=trie().to(device),
            pad_token_id=pad_token_id,
            candidates=choose_candidates("auto", task.dataset.sequences),
            cutoff=config.cutoff,
            batch_size=config.per_device_eval_batch_size,
        )
    return Evaluation(config, ranking)
