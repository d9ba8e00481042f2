"""Run by test_two_ranks.py: optimizer steps in which rank 1 has no supervised token. Without a
launcher, one process has the samples of rank 0 alone."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from ilrec.config.sections import ObjectiveConfig
from ilrec.model.objective import attach_objective
from ilrec.processes import leave_process_group
from ilrec.training import zero3
from ilrec.training.trainer import ILRecTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, required=True)
output = parser.parse_args().output
launched = "RANK" in os.environ
ds_config = json.loads((Path("ds_configs") / "zero3_cpu.json").read_text()) if launched else None
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    vocab_size=64,
    initializer_range=0.1,
)
model = LlamaForCausalLM(config)
arguments = TrainingArguments(
    output_dir=str(output.parent / "run"),
    deepspeed=ds_config,
    use_cpu=True,
    max_steps=2,
    logging_steps=1,
    per_device_train_batch_size=2,
    report_to=[],
    save_strategy="no",
    remove_unused_columns=False,
    label_names=["labels"],
    learning_rate=1e-3,
)
zero3.prepare_sharded_loading()
attach_objective(
    model, ObjectiveConfig(beta=0.1, distillation_weight=0.5, num_readout_layers=2), []
)
generator = torch.Generator().manual_seed(1)
ids = torch.randint(0, 64, (2, 8), generator=generator)
labels = ids.clone()
labels[:, :4] = -100


def collate(samples: list[int]) -> dict[str, torch.Tensor]:
    """The same samples on every rank. Only rank 0 has labels."""
    mine = labels if arguments.process_index == 0 else torch.full_like(labels, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": mine}


trainer = ILRecTrainer(
    model=model, args=arguments, train_dataset=list(range(8)), data_collator=collate
)
trainer.train()
if arguments.process_index == 0:
    last = [line for line in trainer.state.log_history if "loss" in line][-1]
    output.write_text(json.dumps(last))
leave_process_group()
