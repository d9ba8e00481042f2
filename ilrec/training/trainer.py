"""ILRecTrainer: where the Hugging Face Trainer and the ILRec objective meet.

The Trainer does the loop, DeepSpeed, the schedules and the contents of a checkpoint. This file adds
four things: the loss terms are summed over the global batch and logged; NaN and inf end the run
before they reach a weight; evaluation may rank; checkpoints are checked and published whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import speed_metrics

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.ops import IGNORE_INDEX, STATS
from ilrec.samples.batches import EpochLoader, TokenBudgetSampler
from ilrec.training import checkpoints, metrics_log
from ilrec.training.evaluation import Evaluation, ValidationRanking
from ilrec.training.model_card import CARD
from ilrec.training.nonfinite import SAMPLE_IDS, describe_nonfinite, keep_batches
from ilrec.training.zero3 import check_saved

logger = logging.getLogger("ilrec.train")
# Options of torch's DataLoader that are fields of TrainingArguments, there with dataloader_ before.
LOADER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "multiprocessing_context",
    "in_order",
)


class NoStepsLeft(Exception):
    """The checkpoint that a run goes on from is its last."""


class TokenSums:
    """What is summed over this rank's supervised tokens since the last log line."""

    # The sums of the vocabulary operation, then the number of supervised tokens.
    NAMES = (*STATS, "num_tokens")

    def __init__(self) -> None:
        # One tensor on the device, in the order of NAMES: reading a number would wait for the
        # device in every micro-step.
        self._sums: Tensor | None = None

    def add(self, stats: Any, labels_BT: Tensor) -> None:
        """stats: the sums of one micro-batch, in the order of STATS. labels_BT: its labels."""
        # The first token of a sequence has no hidden state before it and is never predicted.
        num_tokens = (labels_BT[:, 1:] != IGNORE_INDEX).sum()
        sums = torch.stack([*stats, num_tokens.to(stats[0].dtype)])
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """{name: sum over all ranks}, and start again from zero. {} if nothing was added.

        reduce: sums a tensor over all ranks.
        """
        if self._sums is None:
            return {}
        totals = reduce(self._sums).tolist()
        self._sums = None
        return dict(zip(self.NAMES, totals, strict=True))


def means_per_token(totals: Mapping[str, float]) -> dict[str, float]:
    """A log line's entries from {name of TokenSums: sum over the global batch}."""
    num_tokens = max(totals["num_tokens"], 1.0)
    return {
        "loss/preference": totals["preference"] / num_tokens,
        "loss/distillation": totals["distillation"] / num_tokens,
        "loss/reward": totals["reward"] / num_tokens,
        "negatives/per_token": totals["num_negatives"] / num_tokens,
        "negatives/rows_without": totals["num_rows_without_negative"] / num_tokens,
    }


class ILRecTrainer(Trainer):
    """A Trainer whose log lines have the three loss terms and the hard negatives, per supervised
    token."""

    def __init__(
        self,
        *args: Any,
        batch_sampler: TokenBudgetSampler | None = None,
        batch_collator: Any = None,
        evaluation: Evaluation | None = None,
        facts: Mapping[str, Any] | None = None,
        card: str = "",
        **kwargs: Any,
    ) -> None:
        """batch_sampler: this rank's batches by token budget; None: the Trainer's own batches.
        batch_collator: collates the batches of batch_sampler.
        evaluation: None if there is none, or of the loss alone.
        facts: what the manifests of checkpoints record of the run (manifest.py).
        card: the model card of whatever is saved (model_card.py).
        """
        super().__init__(*args, **kwargs)
        self.batch_sampler = batch_sampler
        self.batch_collator = batch_collator
        self.evaluation = evaluation
        self.facts = facts or {}
        self.card = card
        self._is_staging = False
        self._sums = TokenSums()
        if evaluation is not None:
            self.add_callback(evaluation)
        self.add_callback(RunDirectory())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. If nothing is left to train, the checkpoint is loaded, and that is
        all: the Trainer itself would take one more step before it looks."""
        try:
            return super().train(*args, **kwargs)
        except NoStepsLeft:
            logger.info("step %d was the last; nothing is left to train", self.state.global_step)
            control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            self.control = control
            return None

    def get_train_dataloader(self) -> DataLoader:
        if self.batch_sampler is None:
            return super().get_train_dataloader()
        # The sampler divides its batches among the ranks. accelerate does not prepare this loader,
        # because it would divide them again.
        return EpochLoader(
            cast(Dataset, self.train_dataset),
            batch_sampler=self.batch_sampler,
            collate_fn=self.batch_collator,
            **self._loader_options(),
        )

    def _loader_options(self) -> dict[str, Any]:
        """The fields dataloader_* that say how samples are loaded, and not which. Not every version
        of transformers has all."""
        fields = {name: f"dataloader_{name}" for name in LOADER_OPTIONS}
        return {
            name: getattr(self.args, field)
            for name, field in fields.items()
            if hasattr(self.args, field)
        }

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        given = {name: value for name, value in inputs.items() if name != SAMPLE_IDS}
        loss, outputs = super().compute_loss(
            model, given, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        self._require_finite(outputs.nonfinite_K2, inputs, model.training)
        if model.training:
            self._sums.add(outputs.stats_5, inputs["labels"])
        # Evaluation asks for outputs to gather predictions from. It gets the loss and no logits.
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def _require_finite(self, nonfinite_K2: Tensor, inputs: dict[str, Any], training: bool) -> None:
        """Raises the same InputError on all ranks if any of them has NaN or inf.

        Every rank calls it for every micro-batch, before the backward pass, because it gathers the
        counts of all ranks.
        """
        counts_WK2 = self.accelerator.gather(nonfinite_K2[None]).tolist()
        if not any(map(any, counts_WK2)):
            return
        step = self.state.global_step
        when = f"step {step + 1}" if training else f"evaluation after step {step}"
        kept = keep_batches(
            inputs,
            counts_WK2,
            self.args.process_index,
            step + training,
            str(self.args.output_dir),
        )
        raise InputError(f"{when}: {describe_nonfinite(counts_WK2)}. {kept}")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        # A data loader draws a random number when it starts. The dropout of the steps that follow
        # must not depend on it.
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            if self.evaluation is None or self.evaluation.ranking is None:
                return super().evaluate(*args, **kwargs)
            return self._evaluate_ranking(self.evaluation.ranking)

    def _evaluate_ranking(self, ranking: ValidationRanking) -> dict[str, float]:
        """Log {"eval_ndcg@K": ..., ...} as the Trainer logs the loss."""
        started = time.time()
        try:
            measured = ranking.measure(self.model)
        except InputError as error:
            raise InputError(f"evaluation after step {self.state.global_step}: {error}") from None
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        metrics |= speed_metrics("eval", started, num_samples=len(ranking.samples))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The Trainer calls this on all ranks at the same steps, so the sums can be reduced here.
        if "loss" in logs:
            totals = self._sums.take(lambda sums: self.accelerator.reduce(sums, reduction="sum"))
            if totals:
                logs.update(means_per_token(totals))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            directory = output_dir or str(self.args.output_dir)
            check_saved(directory)
            # In place of the one that peft writes beside an adapter.
            if self.card:
                write_text(Path(directory) / CARD, self.card)

    def _get_output_dir(self, trial: Any) -> str:
        """Where the Trainer writes a checkpoint: beside its place, until it is whole."""
        directory = super()._get_output_dir(trial)
        return str(checkpoints.staging(directory)) if self._is_staging else directory

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        output_dir = str(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        with checkpoints.full_disk_reported(output_dir):
            self._is_staging = True
            super()._save_checkpoint(model, trial)
            self._is_staging = False
            checkpoints.publish(output_dir, name, {"step": self.state.global_step, **self.facts})
        if self.args.should_save:
            best = self.evaluation.best(self.state) if self.evaluation else None
            kept = checkpoints.checkpoint_at(output_dir, best.step) if best else None
            checkpoints.remove_old(output_dir, self.args.save_total_limit or 0, kept)


def require_steps_left(output_dir: str, step: int, max_steps: int) -> None:
    """Raises InputError if a run that goes on from this step would have ended before it."""
    if step > max_steps:
        raise InputError(
            f"{output_dir}: goes on from step {step}, and this run ends at step {max_steps}; give "
            "more max_steps or num_train_epochs, or name an earlier checkpoint with --resume"
        )


class RunDirectory(TrainerCallback):
    """Keeps metrics.jsonl: one line per log line of the Trainer, and one before each checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The Trainer would keep the checkpoint's intervals between log lines, evaluations and
        # checkpoints. This run's own count.
        state.compute_steps(args, state.max_steps)
        require_steps_left(str(args.output_dir), state.global_step, state.max_steps)
        # Steps that this run repeats must not be in the log twice.
        if state.is_world_process_zero:
            metrics_log.keep_until(str(args.output_dir), state.global_step)
        # The weights of the checkpoint are loaded by now. Patience may have ended the run before.
        if control.should_training_stop or state.global_step == state.max_steps:
            raise NoStepsLeft

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A log line is forced before each checkpoint, so that no partial sums are lost on resume.
        # An evaluation may lead to one.
        will_save = control.should_save or control.should_evaluate
        control.should_log = control.should_log or will_save

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The same for checkpoints under save_strategy: epoch.
        control.should_log = control.should_log or control.should_save

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            metrics_log.append_line(str(args.output_dir), state.global_step, logs)
