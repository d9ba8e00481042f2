"""The report of `--check`: the objective in words, and a sample with its supervised tokens."""

import pytest
from small_samples import dataset_of, make_builder, make_tokenizer

from ilrec.config.sections import ObjectiveConfig
from ilrec.samples.prefixes import TrainingSamples
from ilrec.samples.windows import TrainingWindows
from ilrec.training.in_words import objective_lines, rendered


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "plain cross-entropy"),
        (
            {"beta": 0.2, "alpha": 0.1},
            "a token is a hard negative if the mean of the 4 layers below the last, read out by "
            "the final norm and the head, gives it at least 0.1 times the label's probability",
        ),
        (
            {"beta": 0.2, "threshold": "logit", "num_readout_layers": 1},
            "if the layer below the last one, read out by the final norm and the head, gives it a "
            "logit of at least 0.5 times the last layer's for the label",
        ),
        (
            {"beta": 0.2, "negative_tokens": "continuations", "max_negatives": 7},
            "it must be a token with which an item of the catalogue goes on at this place, and not "
            "the label; at most 7 of them count, the most probable",
        ),
        (
            {"beta": 0.2, "negatives_from": "last_layer"},
            "the last layer itself (an ablation) gives",
        ),
        (
            {"beta": 0.2, "negatives_from": "random"},
            "as many tokens are then drawn at random in their place",
        ),
        ({"distillation_weight": 0.3}, "preference: beta is 0, so this term is plain"),
        (
            {"distillation_weight": 0.3, "distillation_target": "per_layer"},
            "distillation (weight 0.3): each of the 4 layers below the last learns the "
            "distribution of the last layer",
        ),
        (
            {"reward_weight": 0.5, "sasrec": "S", "reward_temperature": 2},
            "reward (weight 0.5): a soft target over the hard negatives and the label, in "
            "proportion to SASRec's probability (S) of the items that go on so, to the power 1 / 2",
        ),
    ],
)
def test_the_objective_in_words(fields, words):
    assert words in "\n".join(objective_lines(ObjectiveConfig(**fields)))


def test_negatives_are_told_only_where_a_term_looks_at_them():
    only_distilled = objective_lines(ObjectiveConfig(distillation_weight=1))
    assert not any("hard negative" in line for line in only_distilled)


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
