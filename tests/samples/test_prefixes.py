"""Which samples there are under last_item and in evaluation, each rendered when it is asked for."""

from __future__ import annotations

import pytest
from small_samples import dataset_of, make_builder, make_dataset

from ilrec.errors import InputError
from ilrec.samples.prefixes import EvaluationSamples, TrainingSamples


def histories_and_targets(samples: TrainingSamples | EvaluationSamples) -> list[tuple]:
    pairs = []
    for index in range(len(samples)):
        *history, target = samples[index]["items"]
        pairs.append((history, target))
    return pairs


def test_each_training_target_once():
    samples = TrainingSamples(make_dataset(), make_builder())
    assert histories_and_targets(samples) == [([0], 1), ([0, 1], 2), ([1], 0)]
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            samples[outside]


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="tiny: nothing to train on"):
        TrainingSamples(dataset_of([[0, 1, 2]]), make_builder())


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("valid", [([0, 1, 2], 3), ([3], 1), ([1, 0], 2)]),
        ("test", [([0, 1, 2, 3], 0), ([3, 1], 0), ([1, 0, 2], 3)]),
    ],
)
def test_each_user_once_in_evaluation(split: str, expected: list):
    samples = EvaluationSamples(make_dataset().evaluation(split), make_builder())
    assert histories_and_targets(samples) == expected
