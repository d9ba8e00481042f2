"""Codes are one token each, by number, whatever the tokenizer."""

from __future__ import annotations

import pytest
from tiny_tokenizers import FAMILIES, llama3, mistral, with_holes
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ilrec.errors import InputError
from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prompts import SemanticIdPrompt, Wording
from ilrec.samples.vocabulary import add_codes, code_ids

# Usual ones; with spaces in and around them; as the tokenizers' own words, digits and pieces are
# written; and some that a normalizer would change.
CODES = ["<a_1>", "<b_2>", "<c_3>", "<b 2>", " c_3", "12", "▁12", "Ġ1", "<A_1>", "①"]


@pytest.fixture(params=FAMILIES)
def tokenizer(request) -> PreTrainedTokenizerBase:
    return FAMILIES[request.param]()


def test_each_code_is_a_number_of_its_own(tokenizer, tmp_path):
    """No old number is taken and no old token moves, also in what is saved and read again."""
    before = tokenizer.get_vocab()
    add_codes(tokenizer, CODES)
    numbers = code_ids(tokenizer, CODES)
    assert len(set(numbers.values())) == len(CODES)
    added = {number for code, number in numbers.items() if code not in before}
    assert added.isdisjoint(before.values())
    after = tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert tokenizer.convert_ids_to_tokens(list(numbers.values())) == CODES

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert code_ids(again, CODES) == numbers
    assert add_codes(again, CODES) == 0
    assert again.get_vocab() == after


def test_an_item_is_its_codes_and_nothing_else(tokenizer):
    """Token for token, also if joined codes read the same: 1 23 and 12 3."""
    semantic_ids = [("1", "23", "<a_1>"), ("12", "3", "<a_1>"), ("<a_1>", "▁<b_2>")]
    prompt = SemanticIdPrompt(semantic_ids, Wording("", "", ""))
    add_codes(tokenizer, prompt.new_tokens())
    builder = SampleBuilder(tokenizer, prompt, 32, 5, every_item=False)
    vocabulary = tokenizer.get_vocab()
    numbers = [[vocabulary[code] for code in codes] for codes in semantic_ids]
    for item, expected in enumerate(numbers):
        assert builder.response_ids(item) == [*expected, tokenizer.eos_token_id]
    assert builder.prompt_ids([1, 0]) == [*builder.prefix, *numbers[1], *numbers[0]]


def test_a_server_reads_and_writes_new_codes_as_text(tokenizer):
    """Nothing changes them in a text, and an answer without special tokens still has them."""
    codes = ["<a_1>", "<b 2>", "<C_3>"]
    add_codes(tokenizer, codes)
    ids = list(code_ids(tokenizer, codes).values())
    assert tokenizer("".join(codes), add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(codes)


def test_a_code_that_is_a_word_already_leaves_texts_as_they_were():
    tokenizer = llama3()
    text = "Red Guitar 12, 1234"
    assert add_codes(tokenizer, ["1", "2", "<a_1>"]) == 1
    assert tokenizer(text)["input_ids"] == llama3()(text)["input_ids"]


def test_holes_get_names_and_stay_what_they_are(tmp_path):
    """The library, which counts tokens, then hands out no old number."""
    tokenizer = with_holes()
    largest = max(tokenizer.get_vocab().values())
    assert len(tokenizer) < largest + 1
    add_codes(tokenizer, ["<a_1>", "<a_2>"])
    numbers = code_ids(tokenizer, ["<a_1>", "<a_2>"])
    assert list(numbers.values()) == [largest + 1, largest + 2]
    assert len(tokenizer) == largest + 3
    text = "Red Guitar about"
    assert tokenizer(text)["input_ids"] == with_holes()(text)["input_ids"]


def test_unknown_codes_are_refused():
    tokenizer = mistral()
    add_codes(tokenizer, ["<a_1>"])
    with pytest.raises(InputError, match="2 of 3 semantic-ID tokens are unknown to it, first"):
        code_ids(tokenizer, ["<a_1>", "<b_1>", "<b_2>"])


def test_a_number_with_two_tokens_is_refused():
    """A tokenizer of an earlier version may have new tokens on old numbers."""
    tokenizer = with_holes()
    codes = [f"<a_{number}>" for number in range(400)]
    tokenizer.add_tokens([AddedToken(code, normalized=False) for code in codes])
    with pytest.raises(InputError, match=r"tokenizer: '.+' and '.+' have the same number, \d+; ex"):
        code_ids(tokenizer, codes)


@pytest.mark.parametrize(
    ("code", "role"), [("</s>", "eos_token"), ("<s>", "bos_token"), ("<unk>", "unk_token")]
)
def test_a_code_that_ends_or_means_something_is_refused(code, role):
    with pytest.raises(InputError, match=f"the code '{code}' is the tokenizer's {role}; expected"):
        code_ids(mistral(), ["<0x00>", code])
