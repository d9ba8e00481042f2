"""S-DPO with random negatives (Chen et al., arXiv 2406.09215), the preference baseline of
docs/experiments. With one rejected item it is DPO.

    python tools/experiments/train_dpo.py --num_rejected 3 --dpo_beta 1 --config FILE.yaml \
        --model runs/sft/final --data DIR --output_dir runs/dpo

Starts from a trained model; a frozen copy of it is the reference. Model, data and training fields
are those of ilrec/train.py; the objective's fields do not count. There is one sample for each
prefix of a history, rendered as `supervision` says. The loss is in ilrec/model/dpo.py.

Shapes: B samples, R rejected items each, G = B (1 + R) sequences.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, set_seed

from ilrec.config.command_line import ArgumentParser
from ilrec.config.loading import load_config, parse_overrides
from ilrec.files.outputs import check_directory
from ilrec.model.dpo import response_logps, sdpo_loss
from ilrec.model.loading import load_tokenizer
from ilrec.processes import run_entry
from ilrec.samples.builder import SampleBuilder
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
        self.samples = samples
        self.builder = builder
        self.num_items = num_items
        self.num_rejected = num_rejected
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The chosen sample first, then the rejected ones: the same prompt with other responses."""
        chosen = self.samples[index]
        *history, target = chosen["items"]
        # The same rejected items in every epoch, and whatever process reads the sample.
        generator = np.random.default_rng([self.seed, index])
        # Numbers among the other items; those from the target on are one further.
        drawn = generator.choice(self.num_items - 1, self.num_rejected, replace=False)
        group = [chosen]
        for item in drawn:
            group.append(self.builder.sample(history, int(item + (item >= target))))
        return group


class SDPOTrainer(Trainer):
    """The loss of S-DPO, over sequences that lie in groups of 1 + R."""

    def __init__(
        self,
        *args: Any,
        reference: torch.nn.Module,
        num_rejected: int,
        dpo_beta: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reference = reference.eval()
        self.group_size = 1 + num_rejected
        self.dpo_beta = dpo_beta
        # The loss is a mean over samples; the Trainer must not divide by a number of tokens.
        self.model_accepts_loss_kwargs = False
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
        ratios_G = response_logps(model, inputs) - reference_G
        loss = sdpo_loss(ratios_G.view(-1, self.group_size), self.dpo_beta)
        return (loss, {"loss": loss.detach()}) if return_outputs else loss


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_number("--num_rejected", int, at_least=1, required=True)
    parser.add_number("--dpo_beta", float, above=0, required=True)
    parser.add_argument("--config")
    # All other flags are fields of ilrec/train.py.
    own, rest = parser.parse_pairs(argv)
    config = load_config(own.config, parse_overrides(rest))

    # The run's directory. What an earlier run left there is set aside: this one starts afresh.
    check_directory(config.training.output_dir)
    task = load_task(config.data)
    arguments = training_arguments(config, None)
    variant = {"num_rejected": own.num_rejected, "dpo_beta": own.dpo_beta}
    identity = run_identity(config, task, None, arguments.world_size, variant)
    set_aside(config.training.output_dir, None, places_read(config.model))
    write_run_directory(config, None, argv, task)
    set_seed(config.training.seed)

    # Tokenizer, samples and model, as ilrec/train.py makes them.
    source = find_source(config, task, arguments)
    tokenizer = load_tokenizer(source, config.model.trust_remote_code)
    new_tokens = task.prompt.new_tokens()
    add_tokens(tokenizer, new_tokens, config, source)
    builder = task.sample_builder(tokenizer)
    samples = PreferenceSamples(
        TrainingSamples(task.dataset, builder),
        builder,
        task.dataset.num_items,
        own.num_rejected,
        config.training.seed,
    )
    model = load_model(config, source, tokenizer, new_tokens, builder.item_token_ids())
    collate = TrainingCollator(tokenizer.pad_token_id)

    trainer = SDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        processing_class=tokenizer,
        # A batch is a list of groups; the model is given all their sequences in one.
        data_collator=lambda groups: collate([sample for group in groups for sample in group]),
        reference=copy.deepcopy(model).requires_grad_(False),
        num_rejected=own.num_rejected,
        dpo_beta=own.dpo_beta,
    )
    trainer.train()
    save_final(trainer, config, task, {"identity": identity, "base": base_facts(source)})


if __name__ == "__main__":
    run_entry(main)
