"""The render contract of both item formats."""

from __future__ import annotations

import pytest

from ilrec.data.prompts import SemanticIdPrompt, TitlePrompt, Wording
from ilrec.errors import InputError

OWN = Wording(None, None, None)
SEMANTIC_IDS = [("<a_1>", "<b_10>"), ("<a_1>", "<b_2>", "<c_0>")]


def test_titles():
    prompt = TitlePrompt(["Toy Story", "Four Rooms"], OWN)
    assert prompt.item_text(1) == ' "Four Rooms"'
    assert prompt.new_tokens() == []


def test_semantic_ids():
    """Tokens once each, level by level and by number within a level: b_2 before b_10."""
    prompt = SemanticIdPrompt(SEMANTIC_IDS, OWN)
    assert prompt.item_text(1) == "<a_1><b_2><c_0>"
    assert prompt.new_tokens() == ["<a_1>", "<b_2>", "<b_10>", "<c_0>"]


@pytest.mark.parametrize("prompt", [TitlePrompt(["a"], OWN), SemanticIdPrompt(SEMANTIC_IDS, OWN)])
def test_own_wording_is_an_instruction(prompt: TitlePrompt | SemanticIdPrompt):
    """No piece ends in a space: it would be a token of its own before the next piece."""
    assert prompt.prefix.startswith("### Instruction:") and prompt.suffix.endswith("### Response:")
    assert prompt.separator == ","
    assert not any(text.endswith(" ") for text in (prompt.prefix, prompt.separator, prompt.suffix, prompt.item_text(0)))


@pytest.mark.parametrize("make", [lambda w: TitlePrompt(["a"], w), lambda w: SemanticIdPrompt(SEMANTIC_IDS, w)])
def test_wording_can_be_replaced(make):
    """An empty text counts as given; null keeps the format's own."""
    prompt = make(Wording("", " then", None))
    assert (prompt.prefix, prompt.separator, prompt.suffix) == ("", " then", make(OWN).suffix)


def test_a_missing_title_is_refused():
    with pytest.raises(InputError, match="2 of 3 have none, first number 1"):
        TitlePrompt(["a", "", ""], OWN)
