"""Prompts, responses and samples, token for token, with a tokenizer of characters."""

from __future__ import annotations

import numpy as np
import pytest
from small_samples import make_builder, make_tokenizer, read
from tiny_tokenizers import qwen
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ilrec.errors import InputError
from ilrec.samples.builder import IGNORE_INDEX, SampleBuilder
from ilrec.samples.prompts import SemanticIdPrompt, TitlePrompt, Wording


def test_sample_is_prompt_and_response():
    """Prompt: < "a", "bb">. Response: "c" and the end token. The labels are those of the response
    alone."""
    builder = make_builder()
    sample = builder.sample(np.array([0, 1]), 2)
    assert read(sample["input_ids"]) == '< "a", "bb"> "c"</s>'
    assert sample["input_ids"] == builder.prompt_ids([0, 1]) + builder.response_ids(2)
    num_prompt = len('< "a", "bb">')
    assert sample["labels"] == [IGNORE_INDEX] * num_prompt + builder.response_ids(2)
    assert sample["items"] == [0, 1, 2]
    assert sample["num_targets"] == 1


def test_responses_of_all_items():
    builder = make_builder()
    responses = [row.tolist() for row in builder.response_sequences()]
    assert responses == [builder.response_ids(item) for item in range(4)]


def test_beginning_token_only_if_the_tokenizer_adds_it():
    assert read(make_builder().prompt_ids([0])) == '< "a">'
    assert read(make_builder(with_bos=True).prompt_ids([0])) == '<s>< "a">'


def test_history_loses_its_oldest_items():
    """max_history_items 2 keeps the newest two. The sample still carries the whole history, because
    SASRec cuts it in its own way."""
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
    """The items have 4, 5 and 4 tokens. Fixed are < and >, the longest response, 5, and its end
    token: 8 in all. With a history this makes:

    a, bb, c: 4 + 5 + 4 and 2 separators, 23 in all; bb, c: 5 + 4 and 1, 18 in all; c: 12 in all.
    """
    builder = make_builder(max_length=max_length)
    assert read(builder.prompt_ids([0, 1, 2])) == prompt
    assert len(builder.sample([0, 1, 2], 1)["input_ids"]) <= max_length


def test_too_short_a_maximum_is_refused():
    """8 fixed tokens and the longest item, 5: 13 at least."""
    make_builder(max_length=13)
    message = 'max_length: 12 tokens .* number 1 .* has 5 tokens: "bb".* of 13 or more'
    with pytest.raises(InputError, match=message):
        make_builder(max_length=12)


def test_semantic_ids_are_one_token_each():
    tokenizer = make_tokenizer()
    prompt = SemanticIdPrompt([("<a_0>", "<b_1>"), ("<a_0>", "<b_0>")], Wording("", "", ""))
    unknown = "3 of 3 semantic-ID tokens are unknown to it, first '<a_0>'"
    with pytest.raises(InputError, match=unknown):
        SampleBuilder(tokenizer, prompt, 16, 5, every_item=False)

    tokenizer.add_tokens(prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 16, 5, every_item=False)
    ids = tokenizer.convert_tokens_to_ids(["<a_0>", "<b_1>", "<a_0>", "<b_0>", "</s>"])
    assert builder.sample([0], 1)["input_ids"] == ids


def test_a_wording_that_becomes_nothing_is_refused():
    """The tokenizer splits at spaces and keeps none of them."""
    vocabulary = {"</s>": 0, "then": 1, '"a"': 2, "<unk>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")

    # Prefix and suffix are empty, which is fine: nobody asked for a token there.
    written = TitlePrompt(["a"], Wording("", " then", ""))
    builder = SampleBuilder(words, written, 8, 5, every_item=False)
    assert builder.prompt_ids([0, 0]) == [2, 1, 2]

    nothing = TitlePrompt(["a"], Wording("", "  ", ""))
    with pytest.raises(InputError, match="prompt_separator: '  ' becomes no token with this"):
        SampleBuilder(words, nothing, 8, 5, every_item=False)


def test_a_wording_with_unknown_characters_is_reported(caplog):
    prompt = TitlePrompt(["a"], Wording("<", "#", ">"))
    SampleBuilder(make_tokenizer(), prompt, 64, 5, every_item=False)
    assert "prompt_separator: '#' holds characters that the tokenizer does not know" in caplog.text


def test_an_unknown_token_that_is_spelled_is_meant(caplog):
    """Qwen has one token for the end, for padding and for the unknown."""
    prompt = TitlePrompt(["a"], Wording("<|endoftext|>", ",", ""))
    builder = SampleBuilder(qwen(), prompt, 64, 5, every_item=False)
    assert builder.prefix == [qwen().eos_token_id]
    assert not caplog.text


def learnt_places(window: dict) -> str:
    """. for a token that is not learnt, x for one that is."""
    return "".join("." if label == IGNORE_INDEX else "x" for label in window["labels"])


def test_a_window_with_every_item_but_the_first_supervised():
    """No quoted title is the beginning of another, so an item ends without an end token. The comma
    is not learnt."""
    window = make_builder(every_item=True).window(np.array([0, 1, 2, 3]), 0, 1, 3)
    assert read(window["input_ids"]) == '< "a", "bb", "c"'
    assert learnt_places(window) == "......xxxxx.xxxx"
    assert window["items"].tolist() == [0, 1, 2]
    assert window["num_targets"] == 2


def test_an_end_token_if_one_item_begins_another():
    """<a_0> is the beginning of <a_0><b_1>: each is followed by the end token, which is learnt."""
    tokenizer = make_tokenizer()
    prompt = SemanticIdPrompt([("<a_0>", "<b_1>"), ("<a_0>",)], Wording("", "", ""))
    tokenizer.add_tokens(prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 16, 5, every_item=True)
    a, b, end = tokenizer.convert_tokens_to_ids(["<a_0>", "<b_1>", "</s>"])

    window = builder.window([1, 0, 1], 0, 1, 3)
    assert window["input_ids"] == [a, end, a, b, end, a, end]
    assert window["labels"] == [IGNORE_INDEX] * 2 + window["input_ids"][2:]
    assert builder.prompt_ids([1]) == [a, end]
    assert [row.tolist() for row in builder.response_sequences()] == [[a, b, end], [a, end]]


@pytest.mark.parametrize("with_bos", [False, True])
def test_ranking_shows_what_training_showed(with_bos: bool):
    """The tokens before each target of a window are the prompt of the history in the window, and
    the tokens learnt there are the response."""
    builder = make_builder(every_item=True, with_bos=with_bos)
    items = np.array([3, 0, 1, 2, 1, 3])
    begin, first, end = 1, 3, 6
    window = builder.window(items, begin, first, end)
    num_learnt = 0
    for place in range(first, end):
        prompt = builder.prompt_ids(items[begin:place])
        response = builder.response_ids(int(items[place]))
        stop = len(prompt) + len(response)
        assert window["input_ids"][:stop] == prompt + response
        assert window["labels"][len(prompt) : stop] == response
        num_learnt += len(response)
    assert sum(label != IGNORE_INDEX for label in window["labels"]) == num_learnt
