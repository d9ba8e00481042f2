"""S-DPO with random negatives (Chen et al., arXiv 2406.09215), the preference baseline of
docs/experiments; one rejected item is DPO.

    python tools/experiments/train_dpo.py --num_rejected 3 --dpo_beta 1 --config FILE.yaml --model
    runs/sft/final --data DIR --output_dir runs/dpo

Starts from a trained model, of which a frozen copy is the reference. Model, data and training
fields as for ilrec/train.py; the objective's fields do not count. One sample for each prefix of a
history, rendered as `supervision` says.

    loss = -log sigmoid(-log sum_j exp(beta [(log p_j - log p_j^ref) - (log p_y - log p_y^ref)]))

Shapes: B samples, R rejected items each, G = B (1 + R) sequences, T tokens.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import load_config, parse_overrides
from ilrec.errors import InputError
from ilrec.files.outputs import check_directory
from ilrec.model.loading import load_tokenizer
from ilrec.processes import run_entry
from ilrec.samples.builder import IGNORE_INDEX, SampleBuilder
from ilrec.samples.collators import TrainingCollator
from ilrec.samples.prefixes import TrainingSamples
from ilrec.samples.task import load_task
from ilrec.training.identity import run_identity
from ilrec.training.recorded_base import base_facts
from ilrec.training.run_directory import save_final, set_aside, write_run_directory
from ilrec.training.setup import (
    add_tokens,
    find_source,
    load_model,
    places_read,
    training_arguments,
)
from ilrec.training.trainer import RunDirectory


class PreferenceSamples(Dataset):
    """Each training sample with R random rejected items, drawn from the seed and the sample's
    number."""

    def __init__(
        self,
        samples: TrainingSamples,
        builder: SampleBuilder,
        num_items: int,
        num_rejected: int,
        seed: int,
    ) -> None:
        self.samples, self.builder, self.num_items, self.num_rejected, self.seed = (
            samples,
            builder,
            num_items,
            num_rejected,
            seed,
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The chosen sample first, then the rejected ones: the same prompt with other responses."""
        chosen = self.samples[index]
        *history, target = chosen["items"]
        others = np.random.default_rng([self.seed, index]).choice(
            self.num_items - 1, self.num_rejected, replace=False
        )
        return [
            chosen,
            *(self.builder.sample(history, int(item + (item >= target))) for item in others),
        ]


class SDPOTrainer(Trainer):
    """The loss above, over sequences that lie in groups of 1 + R."""

    def __init__(
        self,
        *args: Any,
        reference: torch.nn.Module,
        num_rejected: int,
        dpo_beta: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reference, self.group, self.dpo_beta = reference.eval(), 1 + num_rejected, dpo_beta
        self.model_accepts_loss_kwargs = False  # a mean over samples, not over tokens
        self.add_callback(RunDirectory())

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with torch.no_grad():
            reference_G = response_logps(self.reference, inputs)
        ratios = (response_logps(model, inputs) - reference_G).view(-1, self.group)
        loss = sdpo_loss(ratios, self.dpo_beta)
        return (loss, {"loss": loss.detach()}) if return_outputs else loss


def sdpo_loss(ratios: Tensor, beta: float) -> Tensor:
    """ratios [B, 1 + R]: log p - log p^ref, the chosen first. Mean over B."""
    margins_BR = beta * (ratios[:, 1:] - ratios[:, :1])
    return -F.logsigmoid(-margins_BR.logsumexp(1)).mean()


def response_logps(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """log p of each sequence's response: [G]."""
    logits_GTV = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    ).logits[:, :-1]
    labels_GT = inputs["labels"][:, 1:]
    # Minus the cross-entropy of each token, 0 where there is no label.
    losses = F.cross_entropy(
        logits_GTV.flatten(0, 1).float(),
        labels_GT.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return -losses.view_as(labels_GT).sum(1)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--num_rejected", type=int, required=True)
    parser.add_argument("--dpo_beta", type=float, required=True)
    parser.add_argument("--config")
    own, rest = parser.parse_pairs(argv)
    config = load_config(own.config, parse_overrides(rest))
    if own.num_rejected < 1 or own.dpo_beta <= 0:
        raise InputError(
            f"--num_rejected and --dpo_beta: expected positive numbers, got {own.num_rejected} and {own.dpo_beta}"
        )
    check_directory(config.training.output_dir)
    task = load_task(config.data)
    arguments = training_arguments(config, None)
    variant = {"num_rejected": own.num_rejected, "dpo_beta": own.dpo_beta}
    identity = run_identity(config, task, None, arguments.world_size, variant)
    set_aside(
        config.training.output_dir, None, places_read(config.model)
    )  # it always starts afresh
    write_run_directory(config, None, argv, task)
    set_seed(config.training.seed)
    source = find_source(config, task, arguments)
    tokenizer = load_tokenizer(source, config.model.trust_remote_code)
    add_tokens(tokenizer, task.prompt.new_tokens(), config, source)
    builder = task.sample_builder(tokenizer)
    samples = PreferenceSamples(
        TrainingSamples(task.dataset, builder),
        builder,
        task.dataset.num_items,
        own.num_rejected,
        config.training.seed,
    )
    model = load_model(
        config, source, tokenizer, task.prompt.new_tokens(), builder.item_token_ids()
    )
    collate = TrainingCollator(tokenizer.pad_token_id)
    trainer = SDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        processing_class=tokenizer,
        data_collator=lambda groups: collate([sample for group in groups for sample in group]),
        reference=copy.deepcopy(model).requires_grad_(False),
        num_rejected=own.num_rejected,
        dpo_beta=own.dpo_beta,
    )
    trainer.train()
    save_final(trainer, config, task, {"identity": identity, "base": base_facts(source)})


if __name__ == "__main__":
    run_entry(main)
