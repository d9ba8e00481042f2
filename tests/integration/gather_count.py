"""Run by test_gathers.py on two ZeRO-3 ranks: counts how often the LM head is gathered in every
micro-step. Writes JSON, one file per rank."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from ilrec.config.sections import ModelConfig, ObjectiveConfig
from ilrec.model.adapters import add_adapter
from ilrec.model.head import effective_head
from ilrec.model.objective import attach_objective
from ilrec.processes import leave_process_group
from ilrec.training import zero3
from ilrec.training.trainer import ILRecTrainer

OBJECTIVE = ObjectiveConfig(beta=0.1, distillation_weight=0.5, num_readout_layers=2)


class CountingTrainer(ILRecTrainer):
    """Counts each all-gather that puts the head's weight together from its shards.

    "forward": in a micro-step's forward; "backward": from there to the next micro-step.
    """

    head: torch.nn.Parameter | None = None

    def compute_loss(self, model, *args, **kwargs):
        if self.head is None:
            self.watch(model)
        num_tokens = int((args[0]["labels"] != -100).sum())
        self.micro_steps.append(
            {
                "training": model.training,
                "num_tokens": num_tokens,
                "held": len(self.head) > 0,
                "forward": 0,
                "backward": 0,
            }
        )
        self.phase = "forward"
        loss = super().compute_loss(model, *args, **kwargs)
        self.phase = "backward"
        return loss

    def watch(self, model) -> None:
        """Wrap the two methods of a parameter by which ZeRO-3 gathers.

        They may be called on any parameter, with a list of others.
        """
        self.micro_steps: list[dict] = []
        layer = effective_head(self.model)
        self.head = getattr(layer, "base_layer", layer).weight
        for parameter in model.parameters():
            for name in ("all_gather", "all_gather_coalesced"):
                setattr(parameter, name, self.counted(parameter, getattr(parameter, name)))

    def counted(self, parameter, gather):
        def wrapper(param_list=None, *args, **kwargs):
            listed = [parameter] if param_list is None else list(param_list)
            if any(p is self.head for p in listed) and len(self.head) == 0:
                self.micro_steps[-1][self.phase] += 1
            return gather(listed, *args, **kwargs)

        return wrapper


def make_model(trained: str) -> torch.nn.Module:
    """trained: `all` parameters; `lora` beside a frozen head; `rows`: the rows of new tokens in
    that head as well."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=64,
            initializer_range=0.1,
        )
    )
    if trained != "all":
        model = add_adapter(model, ModelConfig(lora_rank=4), [60, 61] if trained == "rows" else [])
    attach_objective(model, OBJECTIVE, [])
    zero3.register_token_rows(model)
    return model


def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
    """Samples are numbered. The odd ones have no supervised token."""
    generator = torch.Generator().manual_seed(samples[0]["number"])
    ids = torch.randint(0, 64, (1, 8), generator=generator)
    labels = ids if samples[0]["number"] % 2 == 0 else torch.full_like(ids, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def run(trained: str, keep: str, directory: Path) -> list[dict]:
    """Two optimizer steps of two micro-steps, each followed by an evaluation of two. Rank 1 gets
    the odd samples.

    keep: what DeepSpeed holds of gathered weights: its `default`, or `nothing`.
    """
    ds_config = json.loads((Path("ds_configs") / "zero3_cpu.json").read_text())
    ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if keep == "nothing":
        ds_config["zero_optimization"] |= {
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
        }
    arguments = TrainingArguments(
        output_dir=str(directory),
        deepspeed=ds_config,
        use_cpu=True,
        max_steps=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        eval_strategy="steps",
        eval_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        prediction_loss_only=True,
        label_names=["labels"],
        learning_rate=1e-3,
    )
    zero3.prepare_sharded_loading()
    samples = [{"number": i} for i in range(8)]
    trainer = CountingTrainer(
        model=make_model(trained),
        args=arguments,
        train_dataset=samples,
        eval_dataset=samples[:4],
        data_collator=collate,
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(samples)
    trainer.train()
    return trainer.micro_steps


parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path, required=True)
parsed = parser.parse_args()
counts = [
    {"trained": trained, "keep": keep, "micro_steps": run(trained, keep, parsed.output / "run")}
    for trained in ("all", "lora", "rows")
    for keep in ("default", "nothing")
]
(parsed.output / f"rank{os.environ['RANK']}.json").write_text(json.dumps(counts))
leave_process_group()
