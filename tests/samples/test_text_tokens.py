"""A prompt's text survives being tokenized piece by piece."""

from __future__ import annotations

import pytest
from tiny_tokenizers import FAMILIES, llama2, mistral, uncased

from ilrec.samples.builder import SampleBuilder
from ilrec.samples.prompts import TitlePrompt, Wording
from ilrec.samples.text_tokens import inside_text

TITLES = ["Toy Story", "Four Rooms", "漢字 — 12"]
# All families but the one that does not keep capital letters.
KEEPING_TEXT = [name for name in FAMILIES if name != "uncased"]


@pytest.mark.parametrize("every_item", [False, True])
@pytest.mark.parametrize("family", KEEPING_TEXT)
def test_what_the_model_reads_is_the_prompt_as_it_is_written(family, every_item):
    """No piece is taken for the beginning of a text and gets one more space."""
    tokenizer = FAMILIES[family]()
    suffix = "" if every_item else "\n### Response:"
    prompt = TitlePrompt(TITLES, Wording("### Input:", ",", suffix))
    builder = SampleBuilder(tokenizer, prompt, 256, 5, every_item)
    ids = builder.prompt_ids([0, 2]) + builder.response_ids(1)
    written = f'### Input: "Toy Story", "漢字 — 12"{suffix or ","} "Four Rooms"'
    assert tokenizer.decode(ids, skip_special_tokens=True) == written


@pytest.mark.parametrize("make", [mistral, llama2, uncased])
def test_no_space_before_a_text_that_goes_on(make):
    """The tokenizer itself stays as it was."""
    tokenizer = make()
    reader = inside_text(tokenizer)
    for reads, expected in ((tokenizer, ["▁", ","]), (reader, [","]), (tokenizer, ["▁", ","])):
        ids = reads(",", add_special_tokens=False)["input_ids"]
        assert reads.convert_ids_to_tokens(ids) == expected


@pytest.mark.parametrize("family", ["llama3", "qwen", "gemma", "in_python"])
def test_no_copy_of_a_tokenizer_that_adds_no_space(family):
    tokenizer = FAMILIES[family]()
    assert inside_text(tokenizer) is tokenizer
