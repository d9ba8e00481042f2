"""A tiny Llama, samples for it and the Trainer's arguments, for tests that need no data
directory."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

NEW_TOKENS = [60, 61, 62, 63]


def tiny_llama(tied: bool = False, **fields) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=64,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        **fields,
    )
    return LlamaForCausalLM(config)


def samples(num: int) -> list[dict]:
    """Sequences of 12 tokens with 2 to 6 supervised ones, so that micro-batches differ in their
    token counts."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number in range(num):
        ids = torch.randint(0, 64, (12,), generator=generator)
        labels = ids.clone()
        labels[: 6 + number % 5] = -100
        mask = torch.ones(12, dtype=torch.int64)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def batch(num: int = 4) -> dict:
    rows = samples(num)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def arguments(output_dir, **fields) -> TrainingArguments:
    """20 steps of batches of 4 on the CPU, without saving, unless `fields` say otherwise."""
    defaults: dict = {
        "per_device_train_batch_size": 4,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "seed": 0,
        "prediction_loss_only": True,
        "label_names": ["labels"],
    }
    return TrainingArguments(
        output_dir=str(output_dir),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        **(defaults | fields),
    )
