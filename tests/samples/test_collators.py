"""The three collators, token for token."""

from __future__ import annotations

from small_samples import make_builder, make_dataset
from torch.utils.data import DataLoader

from ilrec.samples.builder import IGNORE_INDEX
from ilrec.samples.collators import PromptCollator, TrainingCollator, flattening_collator
from ilrec.samples.prefixes import EvaluationSamples


def test_training_collator_pads_on_the_right():
    builder = make_builder()
    long, short = builder.sample([0, 1], 2), builder.sample([3], 1)
    batch = TrainingCollator(0)([long, short])

    # The short one lacks `, "bb"`, 6 tokens, and its response "bb" is one token longer than "c".
    num_padded = len(long["input_ids"]) - len(short["input_ids"])
    assert num_padded == 5
    assert batch["input_ids"].tolist() == [long["input_ids"], short["input_ids"] + [0] * num_padded]
    assert batch["attention_mask"][1].tolist() == [1] * len(short["input_ids"]) + [0] * num_padded
    padded_labels = short["labels"] + [IGNORE_INDEX] * num_padded
    assert batch["labels"].tolist() == [long["labels"], padded_labels]
    # All of a batch goes to the model, so it must hold nothing else.
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_prompt_collator_pads_on_the_left_and_hides_the_response():
    """Ranking gives the model what training put before the response, token for token."""
    builder = make_builder()
    samples = EvaluationSamples(make_dataset().evaluation("test"), builder)
    batch = next(iter(DataLoader(samples, batch_size=3, collate_fn=PromptCollator(0))))

    prompts = [builder.prompt_ids(history) for history in ([0, 1, 2, 3], [3, 1], [1, 0, 2])]
    width = max(map(len, prompts))
    padded, masks = [], []
    for prompt in prompts:
        num_padded = width - len(prompt)
        padded.append([0] * num_padded + prompt)
        masks.append([0] * num_padded + [1] * len(prompt))
    assert batch["input_ids"].tolist() == padded
    assert batch["attention_mask"].tolist() == masks
    assert batch["target_item"].tolist() == [0, 0, 3]


def test_flattened_row_is_the_samples_one_after_the_other():
    """Nothing is padded, and positions begin anew. Boundaries are given if they are asked for, as
    cumulated lengths."""
    builder = make_builder()
    first, second = builder.sample([3], 1), builder.sample([0, 1], 2)
    lengths = [len(first["input_ids"]), len(second["input_ids"])]
    batch = flattening_collator(boundaries=True)([first, second])
    assert batch["input_ids"].tolist() == [first["input_ids"] + second["input_ids"]]
    assert batch["labels"].tolist() == [first["labels"] + second["labels"]]
    assert batch["position_ids"].tolist() == [[*range(lengths[0]), *range(lengths[1])]]
    assert batch["cu_seq_lens_q"].tolist() == [0, lengths[0], sum(lengths)]
    assert batch["max_length_k"] == max(lengths)

    without = flattening_collator(boundaries=False)([first, second])
    assert set(without) == {"input_ids", "labels", "position_ids"}
