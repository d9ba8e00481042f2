"""ILRecTrainer: the seams between the Hugging Face Trainer and the ILRec objective.

The Trainer does the loop, DeepSpeed, schedules and what is in a checkpoint. Here: the loss terms
are counted and logged over the global batch, what is saved is checked and published whole, and the
run directory is kept readable (metrics.jsonl).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ilrec.errors import InputError
from ilrec.files.outputs import write_text
from ilrec.ops import IGNORE_INDEX, STATS
from ilrec.samples.batches import EpochLoader, TokenBudgetSampler
from ilrec.training import checkpoints
from ilrec.training.metrics_log import METRICS_LOG
from ilrec.training.nonfinite import SAMPLE_IDS, describe_nonfinite, keep_batches
from ilrec.training.zero3 import check_saved


class ILRecTrainer(Trainer):
    """Trainer whose log lines carry the three loss terms and the hard negatives per supervised
    token."""

    def __init__(
        self,
        *args: Any,
        batch_sampler: TokenBudgetSampler | None = None,
        batch_collator: Any = None,
        facts: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """batch_sampler: this rank's batches by token budget, collated by batch_collator; None: the
        Trainer's own batches.

        facts: what a checkpoint's manifest says of the run (checkpoints.py).
        """
        super().__init__(*args, **kwargs)
        self.batch_sampler, self.batch_collator = batch_sampler, batch_collator
        self.facts = facts or {}
        self._is_staging = False
        self._sums: Tensor | None = (
            None  # STATS and the token count since the last log line, this rank's share
        )
        self.add_callback(RunDirectory())

    def get_train_dataloader(self) -> DataLoader:
        """Token-budget batches are sharded already, hence not prepared by accelerate, which would
        shard them again."""
        if self.batch_sampler is None:
            return super().get_train_dataloader()
        return EpochLoader(
            cast(Dataset, self.train_dataset),
            batch_sampler=self.batch_sampler,
            collate_fn=self.batch_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

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
            num_tokens = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum().to(outputs.stats_5.dtype)
            sums = torch.cat([outputs.stats_5, num_tokens[None]])
            self._sums = sums if self._sums is None else self._sums + sums
        # Evaluation asks for outputs to gather predictions from; the loss is all there is.
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def _require_finite(self, nonfinite_K2: Tensor, inputs: dict[str, Any], training: bool) -> None:
        """InputError on all ranks alike, before any gradient of it is used. Every rank calls it for
        every micro-batch: it gathers."""
        counts_WK2 = self.accelerator.gather(nonfinite_K2[None]).tolist()
        if any(map(any, counts_WK2)):
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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called on all ranks at the same steps, so that the sums may be reduced here."""
        if "loss" in logs and self._sums is not None:
            logs.update(_means(self.accelerator.reduce(self._sums, reduction="sum")))
            self._sums = None
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            check_saved(output_dir or str(self.args.output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        """A checkpoint is written beside its place, and renamed when it is whole."""
        directory = super()._get_output_dir(trial)
        return str(checkpoints.staging(directory)) if self._is_staging else directory

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        output_dir, name = str(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with checkpoints.full_disk_is_said(output_dir):
            self._is_staging = True
            super()._save_checkpoint(model, trial)
            self._is_staging = False
            checkpoints.publish(output_dir, name, {"step": self.state.global_step, **self.facts})
        if self.args.should_save:
            checkpoints.remove_old(output_dir, self.args.save_total_limit or 0)


def _means(sums: Tensor) -> dict[str, float]:
    totals = dict(zip((*STATS, "num_tokens"), sums.tolist(), strict=True))
    num_tokens = max(totals["num_tokens"], 1.0)
    means = {
        f"loss/{term}": totals[term] / num_tokens
        for term in ("preference", "distillation", "reward")
    }
    return means | {
        "negatives/per_token": totals["num_negatives"] / num_tokens,
        "negatives/rows_without": totals["num_rows_without_negative"] / num_tokens,
    }


class RunDirectory(TrainerCallback):
    """metrics.jsonl: one line per log; every checkpoint has one, and nothing that is counted for
    the next waits in it."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The steps that this run repeats, or all of a fresh one, are not there twice."""
        # The Trainer would keep to the checkpoint's steps between log lines, evaluations and
        # checkpoints.
        state.compute_steps(args, state.max_steps)
        if state.global_step > state.max_steps:
            raise InputError(
                f"{args.output_dir}: goes on from step {state.global_step}, and this run ends at "
                f"step {state.max_steps}; give more max_steps or num_train_epochs, or name an "
                "earlier checkpoint with --resume"
            )
        path = Path(str(args.output_dir)) / METRICS_LOG
        if state.is_world_process_zero and path.exists():
            write_text(
                path,
                "".join(
                    line + "\n"
                    for line in _whole_lines(path)
                    if json.loads(line)["step"] <= state.global_step > 0
                ),
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
            with open(Path(str(args.output_dir)) / METRICS_LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Without a last one that was cut short."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]
