"""`supervision: every_item`: which windows there are, and what they supervise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_samples import dataset_of, make_builder, make_dataset, make_tokenizer, read

from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.interactions.ragged import Ragged
from ilrec.samples.builder import IGNORE_INDEX, SampleBuilder
from ilrec.samples.prefixes import EvaluationSamples, TrainingSamples
from ilrec.samples.prompts import SemanticIdPrompt, Wording
from ilrec.samples.windows import TrainingWindows, cut_windows


def cut(users: list[list[int]], max_items: int, max_tokens: int) -> list[list[int]]:
    """cut_windows for users whose items have these numbers of tokens, each followed by two held-out
    items."""
    sequences = Ragged.from_rows([[*num_tokens, 3, 3] for num_tokens in users])
    before_E1 = np.concatenate([[0], np.cumsum(sequences.values)])
    return cut_windows(sequences.without_last(2), before_E1, max_items, max_tokens).tolist()


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=60), max_size=4),
    st.integers(2, 12),
    st.integers(18, 60),
)
@settings(deadline=None, derandomize=True, database=None)
def test_each_target_once_with_its_context(users: list[list[int]], max_items: int, max_tokens: int):
    """Each place but the first is a target once, in order. Each window fits, and its first target
    has an item before it, and half a window of items if all of them fit."""
    all_windows = cut(users, max_items, max_tokens)
    owners = [window[0] for window in all_windows]
    assert owners == sorted(owners)
    for user, num_tokens in enumerate(users):
        windows = [window for owner, *window in all_windows if owner == user]
        targets: list[int] = []
        for begin, first, end in windows:
            targets += range(first, end)
            assert 0 <= begin < first < end <= begin + max_items
            assert sum(num_tokens[begin:end]) <= max_tokens
        assert targets == list(range(1, len(num_tokens)))

        if sum(num_tokens) <= max_tokens:
            for older, newer in zip(windows[:-1], windows[1:], strict=True):
                older_begin, _, older_end = older
                begin, first, _ = newer
                assert first == older_end
                assert first - begin == max(1, (older_end - older_begin) // 2)


def test_windows_of_the_docstring():
    assert cut([[1] * 7], 4, 100) == [[0, 0, 1, 4], [0, 2, 4, 6], [0, 4, 6, 7]]
    assert cut([[1]], 4, 100) == []
    assert cut([[]], 4, 100) == []


@pytest.mark.parametrize("max_length", [20, 26, 64])
@pytest.mark.parametrize("every_item", [False, True])
def test_lengths_without_rendering(every_item: bool, max_length: int):
    """num_tokens is the length of each rendered sample, also if histories are cut by tokens or by
    items."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 4, size=length) for length in rng.integers(3, 20, size=30)]
    builder = make_builder(max_length=max_length, max_history_items=6, every_item=every_item)
    kind = TrainingWindows if every_item else TrainingSamples
    samples = kind(dataset_of(sequences), builder)
    rendered = [len(samples[index]["input_ids"]) for index in range(len(samples))]
    assert samples.num_tokens().tolist() == rendered
    assert max(rendered) <= max_length


def test_the_worked_number_of_the_docstring():
    """`< "a", "bb", "c"`: 1 + (5 + 6 + 5) - 1 + 0 tokens."""
    samples = TrainingWindows(dataset_of([[0, 1, 2, 3, 3]]), make_builder(every_item=True))
    assert read(samples[0]["input_ids"]) == '< "a", "bb", "c"'
    assert samples.before_E1[:4].tolist() == [0, 5, 5 + 6, 5 + 6 + 5]
    assert samples.num_tokens().tolist() == [1 + (5 + 6 + 5) - 1 + 0]


def test_no_held_out_item_is_ever_in_a_training_sequence():
    """60 users, each with items of its own, so that a leak of any item shows. A held-out item is
    neither read nor learnt."""
    rng = np.random.default_rng(0)
    sequences, num_items = [], 0
    for length in rng.integers(3, 40, size=60):
        sequences.append(np.arange(num_items, num_items + length))
        num_items += length
    titles = [str(item) for item in range(num_items)]
    dataset = dataset_of(sequences, titles)
    tokenizer = make_tokenizer()
    prompt = SemanticIdPrompt([(f"<a_{item}>",) for item in range(num_items)], Wording("", "", ""))
    tokenizer.add_tokens(prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 64, 8, every_item=True)
    samples = TrainingWindows(dataset, builder)

    seen, learnt = set(), []
    for index in range(len(samples)):
        sample = samples[index]
        seen |= set(sample["input_ids"])
        learnt += [label for label in sample["labels"] if label != IGNORE_INDEX]
    held_out, targets = set(), []
    for sequence in sequences:
        tokens = [int(builder.item_ids[item][0]) for item in sequence]
        held_out |= set(tokens[-2:])
        targets += tokens[1:-2]
    assert not held_out & seen
    assert sorted(learnt) == sorted(targets)


def test_training_and_evaluation_of_the_tiny_data():
    builder = make_builder(every_item=True)
    samples = TrainingWindows(make_dataset(), builder)
    texts = [read(samples[index]["input_ids"]) for index in range(len(samples))]
    assert texts == ['< "a", "bb", "c"', '< "bb", "a"']
    evaluation = EvaluationSamples(make_dataset().evaluation("valid"), builder)
    assert read(evaluation[0]["input_ids"]) == '< "a", "bb", "c", "d"'


def test_settings_that_do_not_fit_are_refused():
    suffix = "prompt_suffix: expected none under supervision: every_item"
    with pytest.raises(InputError, match=suffix):
        DataConfig(data="x", supervision="every_item", prompt_suffix="now")
    choice = "supervision: expected one of last_item, every_item, got 'all'"
    with pytest.raises(InputError, match=choice):
        DataConfig(data="x", supervision="all")


def test_nothing_to_train_on_under_every_item():
    with pytest.raises(InputError, match="tiny: nothing to train on"):
        TrainingWindows(dataset_of([[0, 1, 2]]), make_builder(max_history_items=5, every_item=True))
