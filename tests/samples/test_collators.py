"""The three collators, token for token."""

from __future__ import annotations

from test_prefixes import make_builder, make_dataset
from torch.utils.data import DataLoader

from ilrec.samples.collators import PromptCollator, TrainingCollator, flattening_collator
from ilrec.samples.builder import IGNORE_INDEX
from ilrec.samples.prefixes import EvaluationSamples


def test_training_collator_pads_on_the_right():
    builder = make_builder()
    batch = TrainingCollator(0)([builder.sample([0, 1], 2), builder.sample([3], 1)])
    short, long = builder.sample([3], 1), builder.sample([0, 1], 2)
    num_padded = len(long["input_ids"]) - len(short["input_ids"])
    assert num_padded == 5  # `, "bb"` is gone, 6 tokens; the response "bb" is one longer than "c"
    assert batch["input_ids"].tolist() == [long["input_ids"], short["input_ids"] + [0] * num_padded]
    assert batch["attention_mask"][1].tolist() == [1] * len(short["input_ids"]) + [0] * num_padded
    assert batch["labels"].tolist() == [
        long["labels"],
        short["labels"] + [IGNORE_INDEX] * num_padded,
    ]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}  # all of it goes to the model


def test_prompt_collator_pads_on_the_left_and_hides_the_response():
    """What ranking feeds the model is what training put before the response, token for token."""
    builder = make_builder()
    samples = EvaluationSamples(make_dataset(), builder, "test")
    batch = next(iter(DataLoader(samples, batch_size=3, collate_fn=PromptCollator(0))))
    prompts = [builder.prompt_ids(history) for history in ([0, 1, 2, 3], [3, 1], [1, 0, 2])]
    width = max(map(len, prompts))
    assert batch["input_ids"].tolist() == [[0] * (width - len(p)) + p for p in prompts]
    assert batch["attention_mask"].tolist() == [
        [0] * (width - len(p)) + [1] * len(p) for p in prompts
    ]
    assert batch["target_item"].tolist() == [0, 0, 3]


def test_flattened_row_is_the_samples_one_after_the_other():
    """Nothing padded; positions begin anew; boundaries are given where they are asked for
    (cumulated lengths)."""
    builder = make_builder()
    first, second = builder.sample([3], 1), builder.sample([0, 1], 2)
    lengths = [len(first["input_ids"]), len(second["input_ids"])]
    batch = flattening_collator(boundaries=True)([first, second])
    assert batch["input_ids"].tolist() == [first["input_ids"] + second["input_ids"]]
    assert batch["labels"].tolist() == [first["labels"] + second["labels"]]
    assert batch["position_ids"].tolist() == [[*range(lengths[0]), *range(lengths[1])]]
    assert batch["cu_seq_lens_q"].tolist() == [0, lengths[0], sum(lengths)] and batch[
        "max_length_k"
    ] == max(lengths)
    assert set(flattening_collator(boundaries=False)([first, second])) == {
        "input_ids",
        "labels",
        "position_ids",
    }
