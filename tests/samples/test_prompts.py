"""How both item formats write items and the text around them."""

from __future__ import annotations

import pytest
from tiny_tokenizers import FAMILIES, mistral, uncased

from ilrec.errors import InputError
from ilrec.samples.prompts import SemanticIdPrompt, TitlePrompt, Wording

# Each item format's own wording.
OWN = Wording(None, None, None)
SEMANTIC_IDS = [("<a_1>", "<b_10>"), ("<a_1>", "<b_2>", "<c_0>")]


def test_titles():
    prompt = TitlePrompt(["Toy Story", "Four Rooms"], OWN)
    assert prompt.item_text(1) == ' "Four Rooms"'
    assert prompt.new_tokens() == []


def test_semantic_ids():
    """Each token once, level by level, and by number within a level: b_2 before b_10."""
    prompt = SemanticIdPrompt(SEMANTIC_IDS, OWN)
    assert prompt.item_text(1) == "<a_1><b_2><c_0>"
    assert prompt.new_tokens() == ["<a_1>", "<b_2>", "<b_10>", "<c_0>"]


@pytest.mark.parametrize("prompt", [TitlePrompt(["a"], OWN), SemanticIdPrompt(SEMANTIC_IDS, OWN)])
def test_own_wording_is_an_instruction(prompt: TitlePrompt | SemanticIdPrompt):
    """No piece ends in a space, which would be a token of its own before the next piece."""
    assert prompt.prefix.startswith("### Instruction:")
    assert prompt.suffix.endswith("### Response:")
    assert prompt.separator == ","
    for text in (prompt.prefix, prompt.separator, prompt.suffix, prompt.item_text(0)):
        assert not text.endswith(" ")


@pytest.mark.parametrize(
    ("kind", "items"), [(TitlePrompt, ["a"]), (SemanticIdPrompt, SEMANTIC_IDS)]
)
def test_wording_can_be_replaced(kind, items):
    """An empty text counts as given; null keeps the format's own."""
    prompt = kind(items, Wording("", " then", None))
    assert prompt.prefix == ""
    assert prompt.separator == " then"
    assert prompt.suffix == kind(items, OWN).suffix


def test_a_missing_title_is_refused():
    with pytest.raises(InputError, match="2 of 3 have none, first number 1"):
        TitlePrompt(["a", "", ""], OWN)


def ids_of(titles: list[str], tokenizer) -> list[list[int]]:
    return [row.tolist() for row in TitlePrompt(titles, OWN).item_ids(tokenizer)]


def test_the_same_title_is_reported_and_kept(caplog):
    """Case, width and further spaces make no other title if the tokenizer does not keep them."""
    titles = ["red guitar", "amp", "red guitar", "Red  Guitar", "ａｍｐ"]
    one, two, three, four, five = ids_of(titles, uncased())
    assert one == three == four
    assert two == five
    assert "3 of 5 items have the same title as an item before them, first 'red gui" in caplog.text
    caplog.clear()
    assert len({tuple(row) for row in ids_of(titles, mistral())}) == 4
    assert "1 of 5 items have the same title" in caplog.text


def test_titles_that_the_tokenizer_cannot_tell_apart_are_refused():
    message = (
        r"2 of 4 items have the same tokens as an item of another title, first '仮名' "
        r"\(number 2 in catalogue order\) and '漢字' \(number 0\): .* or item_format: sem"
    )
    with pytest.raises(InputError, match=message):
        ids_of(["漢字", "amp", "仮名", "交響"], uncased())


def test_unknown_characters_are_counted(caplog):
    ids_of(["amp", "amp 漢", "漢", "漢漢 guitar"], uncased())
    assert "3 of 4 titles hold characters that the tokenizer does not know, first" in caplog.text
    caplog.clear()
    ids_of(["amp", "amp 漢"], mistral())
    assert not caplog.text


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "uncased"])
def test_a_title_that_spells_a_special_token_is_text(family):
    """An end token within an item would end it early."""
    tokenizer = FAMILIES[family]()
    special = [token for token in (tokenizer.eos_token, tokenizer.bos_token) if token]
    (row,) = ids_of([f"The {' '.join(special)} tag"], tokenizer)
    numbers = tokenizer.convert_tokens_to_ids(special)
    assert not set(numbers) & set(row)
    # In any other text the tokenizer still reads it as the special token.
    assert tokenizer(special[0], add_special_tokens=False)["input_ids"] == numbers[:1]


def test_a_title_that_always_holds_an_end_token_is_refused():
    """A unigram model has the end token among its pieces, and finds it in any text."""
    with pytest.raises(InputError, match="1 of 2 titles hold the end token '</s>', first 'an </s>"):
        ids_of(["amp", "an </s> amp"], uncased())


def test_two_items_never_have_the_same_codes():
    with pytest.raises(InputError, match="items number 0 and 2 in catalogue order have the same"):
        SemanticIdPrompt([("<a_1>", "<b_2>"), ("<a_1>",), ("<a_1>", "<b_2>")], OWN)
