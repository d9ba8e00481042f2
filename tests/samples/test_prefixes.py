"""Samples, token for token, with a tokenizer of characters that is made here; the lazy index."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_tokenizers import qwen
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ilrec.errors import InputError
from ilrec.interactions.dataset import InteractionDataset
from ilrec.interactions.ragged import Ragged
from ilrec.samples.builder import IGNORE_INDEX, SampleBuilder
from ilrec.samples.prefixes import EvaluationSamples, TrainingSamples
from ilrec.samples.prompts import SemanticIdPrompt, TitlePrompt, Wording

TITLES = ["a", "bb", "c", "d"]
WORDING = Wording("<", ",", ">")


def make_tokenizer(with_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per character."""
    texts = ["<pad>", "</s>", "<s>", "<unk>", *'<>, "abcdefghij']
    vocabulary = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )


def make_builder(
    max_length: int = 64,
    max_history_items: int = 20,
    with_bos: bool = False,
    every_item: bool = False,
) -> SampleBuilder:
    prompt = TitlePrompt(TITLES, WORDING)
    tokenizer = make_tokenizer(with_bos)
    return SampleBuilder(tokenizer, prompt, max_length, max_history_items, every_item)


def make_dataset() -> InteractionDataset:
    """Training parts: [0 1 2], [3], [1 0]; so three targets with a history: user 0's items 1 and 2,
    user 2's item 0."""
    sequences = [[0, 1, 2, 3, 0], [3, 1, 0], [1, 0, 2, 3]]
    return InteractionDataset(
        "tiny", ["x", "y", "z"], ["0", "1", "2", "3"], Ragged.from_rows(sequences), TITLES, 0, ""
    )


def read(ids: list[int]) -> str:
    return "".join(make_tokenizer().convert_ids_to_tokens(ids))


def test_sample_is_prompt_and_response():
    """Prompt: < "a", "bb"> and response: "c" and the end token; the labels are the response
    alone."""
    builder = make_builder()
    sample = builder.sample(np.array([0, 1]), 2)
    assert read(sample["input_ids"]) == '< "a", "bb"> "c"</s>'
    assert sample["input_ids"] == builder.prompt_ids([0, 1]) + builder.response_ids(2)
    num_prompt = len('< "a", "bb">')
    assert sample["labels"] == [IGNORE_INDEX] * num_prompt + builder.response_ids(2)
    assert (sample["items"], sample["num_targets"]) == ([0, 1, 2], 1)
    assert [row.tolist() for row in builder.response_sequences()] == [
        builder.response_ids(item) for item in range(4)
    ]


def test_beginning_token_only_where_the_tokenizer_adds_it():
    assert read(make_builder().prompt_ids([0])) == '< "a">'
    assert read(make_builder(with_bos=True).prompt_ids([0])) == '<s>< "a">'


def test_history_loses_its_oldest_items():
    """max_history_items 2 keeps the newest two. The sample carries the whole history: SASRec cuts
    its own."""
    builder = make_builder(max_history_items=2)
    sample = builder.sample([0, 1, 2, 3], 0)
    assert read(sample["input_ids"]) == '< "c", "d"> "a"</s>'
    assert sample["items"] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("max_length", "prompt"),
    [
        (23, '< "a", "bb", "c">'),
        (22, '< "bb", "c">'),
        (18, '< "bb", "c">'),
        (17, '< "c">'),
        (13, '< "c">'),
    ],
)
def test_history_fits_beside_the_longest_response(max_length: int, prompt: str):
    """Items are 4, 5 and 4 tokens. Fixed: < and >, the longest response, 5, and its end: 8. With
    the history:

    a, bb, c: 4 + 5 + 4 and 2 separators, 23 in all; bb, c: 5 + 4 and 1, 18 in all; c: 12 in all.
    """
    builder = make_builder(max_length=max_length)
    assert read(builder.prompt_ids([0, 1, 2])) == prompt
    assert len(builder.sample([0, 1, 2], 1)["input_ids"]) <= max_length


def test_too_short_a_maximum_is_refused():
    """8 fixed tokens and the longest item, 5: 13 at least."""
    make_builder(max_length=13)
    with pytest.raises(
        InputError, match='max_length: 12 tokens .* number 1 .* has 5 tokens: "bb".* of 13 or more'
    ):
        make_builder(max_length=12)


def test_semantic_ids_are_one_token_each():
    tokenizer = make_tokenizer()
    prompt = SemanticIdPrompt([("<a_0>", "<b_1>"), ("<a_0>", "<b_0>")], Wording("", "", ""))
    with pytest.raises(
        InputError, match="3 of 3 semantic-ID tokens are unknown to it, first '<a_0>'"
    ):
        SampleBuilder(tokenizer, prompt, 16, 5, every_item=False)
    tokenizer.add_tokens(prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 16, 5, every_item=False)
    ids = tokenizer.convert_tokens_to_ids(["<a_0>", "<b_1>", "<a_0>", "<b_0>", "</s>"])
    assert builder.sample([0], 1)["input_ids"] == ids


def test_a_wording_that_becomes_nothing_is_refused():
    """The tokenizer splits at spaces and keeps none; what is not asked for may be nothing."""
    vocabulary = {"</s>": 0, "then": 1, '"a"': 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    written, nothing = (TitlePrompt(["a"], Wording("", text, "")) for text in (" then", "  "))
    assert SampleBuilder(words, written, 8, 5, every_item=False).prompt_ids([0, 0]) == [2, 1, 2]
    with pytest.raises(InputError, match="prompt_separator: '  ' becomes no token with this"):
        SampleBuilder(words, nothing, 8, 5, every_item=False)


def test_a_wording_with_unknown_characters_is_said(caplog):
    prompt = TitlePrompt(["a"], Wording("<", "#", ">"))
    SampleBuilder(make_tokenizer(), prompt, 64, 5, every_item=False)
    assert "prompt_separator: '#' holds characters that the tokenizer does not know" in caplog.text


def test_an_unknown_token_that_is_spelled_is_meant(caplog):
    """Qwen has one token for the end, padding and the unknown."""
    prompt = TitlePrompt(["a"], Wording("<|endoftext|>", ",", ""))
    builder = SampleBuilder(qwen(), prompt, 64, 5, every_item=False)
    assert builder.prefix == [qwen().eos_token_id] and not caplog.text


def test_each_training_target_once():
    samples = TrainingSamples(make_dataset(), make_builder())
    seen = [(samples[i]["items"][:-1], samples[i]["items"][-1]) for i in range(len(samples))]
    assert seen == [([0], 1), ([0, 1], 2), ([1], 0)]
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            samples[outside]


def test_nothing_to_train_on():
    dataset = InteractionDataset(
        "tiny", ["x"], ["0", "1", "2", "3"], Ragged.from_rows([[0, 1, 2]]), TITLES, 0, ""
    )
    with pytest.raises(InputError, match="tiny: nothing to train on"):
        TrainingSamples(dataset, make_builder())


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("valid", [([0, 1, 2], 3), ([3], 1), ([1, 0], 2)]),
        ("test", [([0, 1, 2, 3], 0), ([3, 1], 0), ([1, 0, 2], 3)]),
    ],
)
def test_each_user_once_in_evaluation(split: str, expected: list):
    samples = EvaluationSamples(make_dataset(), make_builder(), split)
    seen = [(samples[i]["items"][:-1], samples[i]["items"][-1]) for i in range(len(samples))]
    assert seen == expected
