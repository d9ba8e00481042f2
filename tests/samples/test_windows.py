"""`supervision: every_item`: windows, what they supervise, and that ranking shows a target the same
tokens as training did."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prefixes import TITLES, make_builder, make_dataset, make_tokenizer, read

from ilrec.config.sections import DataConfig
from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.samples.builder import IGNORE_INDEX, SampleBuilder
from ilrec.samples.prefixes import EvaluationSamples, TrainingSamples
from ilrec.samples.prompts import SemanticIdPrompt, Wording
from ilrec.samples.windows import TrainingWindows, cut_windows


def test_one_sequence_with_every_item_but_the_first_supervised():
    """Quoted titles are no beginnings of each other: an item ends without an end token, the comma
    is not learnt."""
    window = make_builder(every_item=True).window(np.array([0, 1, 2, 3]), 0, 1, 3)
    assert read(window["input_ids"]) == '< "a", "bb", "c"'
    learnt = "".join("." if label == IGNORE_INDEX else "x" for label in window["labels"])
    assert learnt == "<.....xxxxx.xxxx".replace("<", ".")
    assert window["items"].tolist() == [0, 1, 2] and window["num_targets"] == 2


def test_an_end_token_where_one_item_begins_another():
    """<a_0> begins <a_0><b_1>: each is followed by the end token, which is learnt."""
    tokenizer = make_tokenizer()
    prompt = SemanticIdPrompt([("<a_0>", "<b_1>"), ("<a_0>",)], Wording("", "", ""))
    tokenizer.add_tokens(prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 16, 5, every_item=True)
    a, b, end = tokenizer.convert_tokens_to_ids(["<a_0>", "<b_1>", "</s>"])
    window = builder.window([1, 0, 1], 0, 1, 3)
    assert window["input_ids"] == [a, end, a, b, end, a, end]
    assert window["labels"] == [IGNORE_INDEX] * 2 + window["input_ids"][2:]
    assert builder.prompt_ids([1]) == [a, end] and [
        r.tolist() for r in builder.response_sequences()
    ] == [[a, b, end], [a, end]]


@pytest.mark.parametrize("with_bos", [False, True])
def test_ranking_shows_what_training_showed(with_bos: bool):
    """The tokens before each target of a window are the prompt of its history in the window, the
    tokens learnt its response."""
    builder = make_builder(every_item=True, with_bos=with_bos)
    items, begin, first, end = np.array([3, 0, 1, 2, 1, 3]), 1, 3, 6
    window = builder.window(items, begin, first, end)
    for place in range(first, end):
        prompt, response = (
            builder.prompt_ids(items[begin:place]),
            builder.response_ids(int(items[place])),
        )
        assert window["input_ids"][: len(prompt) + len(response)] == prompt + response
        assert window["labels"][len(prompt) : len(prompt) + len(response)] == response
    assert sum(label != IGNORE_INDEX for label in window["labels"]) == sum(
        len(builder.response_ids(int(i))) for i in items[first:end]
    )


def cut(users: list[list[int]], max_items: int, max_tokens: int) -> list[list[int]]:
    """cut_windows of users whose items have these numbers of tokens, with two held-out items after
    each."""
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
    """Every place but the first once, in order; a window fits; a target has a predecessor, and half
    a window of them if that fits."""
    all_windows = cut(users, max_items, max_tokens)
    assert [user for user, *_ in all_windows] == sorted(user for user, *_ in all_windows)
    for user, num_tokens in enumerate(users):
        windows = [window for owner, *window in all_windows if owner == user]
        assert [place for _, first, end in windows for place in range(first, end)] == list(
            range(1, len(num_tokens))
        )
        for begin, first, end in windows:
            assert (
                0 <= begin < first < end <= begin + max_items
                and sum(num_tokens[begin:end]) <= max_tokens
            )
        if sum(num_tokens) <= max_tokens:
            for (begin, first, _), (before, _, ended) in zip(
                windows[1:], windows[:-1], strict=True
            ):
                assert first == ended and first - begin == max(1, (ended - before) // 2)


def test_windows_of_the_docstring():
    windows = [[0, 0, 1, 4], [0, 2, 4, 6], [0, 4, 6, 7]]
    assert cut([[1] * 7], 4, 100) == windows
    assert cut([[1]], 4, 100) == cut([[]], 4, 100) == []


@pytest.mark.parametrize("max_length", [20, 26, 64])
@pytest.mark.parametrize("every_item", [False, True])
def test_lengths_without_rendering(every_item: bool, max_length: int):
    """num_tokens says what rendering gives, also where histories are cut by tokens or by items."""
    rng = np.random.default_rng(0)
    sequences = Ragged.from_rows(
        rng.integers(0, 4, size=length) for length in rng.integers(3, 20, size=30)
    )
    dataset = InteractionDataset(
        "random", [str(u) for u in range(30)], list("0123"), sequences, TITLES, 0, ""
    )
    samples = (TrainingWindows if every_item else TrainingSamples)(
        dataset, make_builder(max_length=max_length, max_history_items=6, every_item=every_item)
    )
    assert samples.num_tokens().tolist() == [
        len(samples[i]["input_ids"]) for i in range(len(samples))
    ]
    assert samples.num_tokens().max() <= max_length


def test_no_held_out_item_is_ever_in_a_training_sequence():
    """All users of a random data set, each with items of its own, so that a leak of any item shows:
    neither fed nor learnt."""
    rng = np.random.default_rng(0)
    sequences, first = [], 0
    for length in rng.integers(3, 40, size=60):
        sequences.append(np.arange(first, first + length))
        first += length
    titles = [str(i) for i in range(first)]
    dataset = InteractionDataset(
        "own", [str(u) for u in range(60)], titles, Ragged.from_rows(sequences), titles, 0, ""
    )
    tokenizer = make_tokenizer()
    prompt = SemanticIdPrompt([(f"<a_{i}>",) for i in range(first)], Wording("", "", ""))
    tokenizer.add_tokens(prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 64, 8, every_item=True)
    samples = TrainingWindows(dataset, builder)
    seen, learnt = set(), []
    for index in range(len(samples)):
        sample = samples[index]
        seen |= set(sample["input_ids"])
        learnt += [label for label in sample["labels"] if label != IGNORE_INDEX]
    held_out = {builder.item_ids[item][0] for sequence in sequences for item in sequence[-2:]}
    assert not held_out & seen
    assert sorted(learnt) == sorted(
        builder.item_ids[item][0] for sequence in sequences for item in sequence[1:-2]
    )


def test_training_and_evaluation_of_the_tiny_data():
    builder = make_builder(every_item=True)
    samples = TrainingWindows(make_dataset(), builder)
    assert [read(samples[i]["input_ids"]) for i in range(len(samples))] == [
        '< "a", "bb", "c"',
        '< "bb", "a"',
    ]
    evaluation = EvaluationSamples(make_dataset(), builder, "valid")
    assert read(evaluation[0]["input_ids"]) == '< "a", "bb", "c", "d"'


def test_refusals():
    with pytest.raises(
        InputError, match="prompt_suffix: expected none under supervision: every_item"
    ):
        DataConfig(data="x", supervision="every_item", prompt_suffix="now")
    with pytest.raises(
        InputError, match="supervision: expected one of last_item, every_item, got 'all'"
    ):
        DataConfig(data="x", supervision="all")
    short = InteractionDataset(
        "tiny", ["x"], ["0", "1", "2", "3"], Ragged.from_rows([[0, 1, 2]]), TITLES, 0, ""
    )
    with pytest.raises(InputError, match="tiny: nothing to train on"):
        TrainingWindows(short, make_builder(max_history_items=5, every_item=True))
