"""ILRecTrainer: the seams between the Hugging Face Trainer and the ILRec objective.

The Trainer does the loop, DeepSpeed, checkpoints and schedules. Here: the loss terms are counted and logged over the global
batch, what is saved is checked, and the run directory is kept readable (metrics.jsonl).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ilrec.collaborative.sasrec import SASRec
from ilrec.collaborative.token_reward import token_rewards
from ilrec.data.batches import EpochLoader, TokenBudgetSampler
from ilrec.errors import InputError
from ilrec.items.trie import ItemTrie
from ilrec.ops import IGNORE_INDEX, STATS
from ilrec.training.resume import COMPLETE
from ilrec.training.zero3 import check_saved


class RewardCollator:
    """Adds the collaborative filter's token rewards (method.md, step 4) to a collated batch."""

    def __init__(self, collate: Callable[[Sequence[dict]], dict[str, Tensor]], sasrec: SASRec, trie: ItemTrie) -> None:
        self.collate, self.sasrec, self.trie = collate, sasrec, trie

    def __call__(self, samples: Sequence[dict]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collate(samples)
        targets = [(sample["items"], place) for sample in samples
                   for place in range(len(sample["items"]) - sample["num_targets"], len(sample["items"]))]
        probabilities_BI = self.sasrec.item_probabilities([items[:place] for items, place in targets])
        batch["token_rewards"] = token_rewards(probabilities_BI, [int(items[place]) for items, place in targets], self.trie)
        return batch


class ILRecTrainer(Trainer):
    """Trainer whose log lines carry the three loss terms and the hard negatives per supervised token."""

    def __init__(self, *args: Any, batch_sampler: TokenBudgetSampler | None = None, batch_collator: Any = None, **kwargs: Any) -> None:
        """batch_sampler: this rank's batches by token budget, collated by batch_collator; None: the Trainer's own batches."""
        super().__init__(*args, **kwargs)
        self.batch_sampler, self.batch_collator = batch_sampler, batch_collator
        self._sums: Tensor | None = None  # STATS and the token count since the last log line, this rank's share
        self.add_callback(RunDirectory())

    def get_train_dataloader(self) -> DataLoader:
        """Token-budget batches are sharded already, hence not prepared by accelerate, which would shard them again."""
        if self.batch_sampler is None:
            return super().get_train_dataloader()
        return EpochLoader(cast(Dataset, self.train_dataset), batch_sampler=self.batch_sampler, collate_fn=self.batch_collator,
                           num_workers=self.args.dataloader_num_workers, pin_memory=self.args.dataloader_pin_memory)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self._require_finite(outputs.nonfinite_K2, model.training)
        if model.training:
            num_tokens = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum().to(outputs.stats_5.dtype)
            sums = torch.cat([outputs.stats_5, num_tokens[None]])
            self._sums = sums if self._sums is None else self._sums + sums
        # Evaluation asks for outputs to gather predictions from; the loss is all there is.
        return (loss, {"loss": loss.detach()}) if return_outputs else loss

    def _require_finite(self, nonfinite_K2: Tensor, training: bool) -> None:
        """InputError on all ranks alike, before any gradient of it is used. Every rank calls it for every micro-batch: it gathers."""
        counts_WK2 = self.accelerator.gather(nonfinite_K2[None]).tolist()
        if any(map(any, counts_WK2)):
            step = self.state.global_step
            when = f"step {step + 1}" if training else f"evaluation after step {step}"
            raise InputError(f"{when}: {_describe_nonfinite(counts_WK2)}")

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


def _describe_nonfinite(counts_WK2: list[list[int]]) -> str:
    """What is NaN or inf, on which rank, and the mend; the lowest layer first, because what goes wrong there goes on upwards."""
    num_readout_layers = len(counts_WK2[0]) - 2
    names = ["last layer's hidden states", *(f"readout layer L-{k}'s hidden states" for k in range(1, num_readout_layers + 1))]
    found = []
    for layer in range(num_readout_layers, -1, -1):
        tokens = {rank: counts[layer] for rank, counts in enumerate(counts_WK2) if counts[layer]}
        if tokens:
            found.append(f"{names[layer]} ({', '.join(f'rank {rank}: {count} tokens' for rank, count in tokens.items())})")
    if found:
        return (f"NaN or inf in {'; '.join(found)}. Lower learning_rate or max_grad_norm, set dtype: bfloat16 if it is float16, "
                "and check that the model or checkpoint started from has none in its weights")
    ranks = ", ".join(f"rank {rank}" for rank, counts in enumerate(counts_WK2) if counts[-1])
    return (f"the loss is NaN or inf ({ranks}) though the hidden states are finite. Check the LM head and the new tokens' rows "
            "of the model or checkpoint started from, lower learning_rate, and set dtype: bfloat16 if it is float16")


def _means(sums: Tensor) -> dict[str, float]:
    totals = dict(zip((*STATS, "num_tokens"), sums.tolist(), strict=True))
    num_tokens = max(totals["num_tokens"], 1.0)
    means = {f"loss/{term}": totals[term] / num_tokens for term in ("preference", "distillation", "reward")}
    return means | {"negatives/per_token": totals["num_negatives"] / num_tokens,
                    "negatives/rows_without": totals["num_rows_without_negative"] / num_tokens}


class RunDirectory(TrainerCallback):
    """metrics.jsonl, one line per log; and the marker that makes a checkpoint complete."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step == 0:  # a fresh start; a resumed run goes on with its lines
            (Path(str(args.output_dir)) / "metrics.jsonl").unlink(missing_ok=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            with open(Path(str(args.output_dir)) / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every rank has written its part
        if state.is_world_process_zero:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            marker = {"step": state.global_step, "world_size": args.world_size}
            (directory / COMPLETE).write_text(json.dumps(marker) + "\n", encoding="utf-8")
