"""The report of `--check`: a sample with its supervised tokens."""

import pytest
from small_samples import dataset_of, make_builder, make_tokenizer

from ilrec.samples.prefixes import TrainingSamples
from ilrec.samples.windows import TrainingWindows
from ilrec.training.in_words import rendered


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        # The history 0, 1 and the target 2; then the same items as one window.
        (TrainingSamples, '< "a", "bb">>> "c"</s><<'),
        (TrainingWindows, '< "a",>> "bb"<<,>> "c"<<'),
    ],
)
def test_a_sample_shows_what_is_supervised(kind, text):
    builder = make_builder(every_item=kind is TrainingWindows)
    samples = kind(dataset_of([[0, 1, 2, 3, 3]]), builder)
    sample = samples[len(samples) - 1]
    shown, ids = rendered(sample["input_ids"], sample["labels"], make_tokenizer())
    # This tokenizer's decoder puts a space between tokens.
    assert shown.replace(" ", "") == text.replace(" ", "")
    marked = [int(word[:-1]) for word in ids.split() if word.endswith("*")]
    assert marked == [label for label in sample["labels"] if label >= 0]
    assert [int(word.rstrip("*")) for word in ids.split()] == sample["input_ids"]
