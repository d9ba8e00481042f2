"""Items are tokenized once, and again if anything that the ids depend on has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_samples import TITLES, WORDING, make_tokenizer

from ilrec.errors import InputError
from ilrec.samples import item_tokens
from ilrec.samples.item_tokens import tokenize_items
from ilrec.samples.prompts import TitlePrompt


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(item_tokens, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch) -> list:
    """One entry for each time that items are tokenized."""
    made: list = []
    tokenize = item_tokens._tokenize

    def counted(*arguments):
        made.append(arguments)
        return tokenize(*arguments)

    monkeypatch.setattr(item_tokens, "_tokenize", counted)
    return made


def tokenized(titles: list[str], tokenizer=None) -> list[list[int]]:
    text_of = TitlePrompt(titles, WORDING).item_text
    rows = tokenize_items(tokenizer or make_tokenizer(), text_of, len(titles))
    return [row.tolist() for row in rows]


def test_second_time_from_the_cache_with_the_same_result(cache, calls, monkeypatch):
    # Three items a call: the four titles take more than one call to the tokenizer.
    monkeypatch.setattr(item_tokens, "ITEMS_PER_CALL", 3)
    tokenizer = make_tokenizer()
    expected = []
    for title in TITLES:
        expected.append(tokenizer(f' "{title}"', add_special_tokens=False)["input_ids"])
    assert tokenized(TITLES) == expected
    assert tokenized(TITLES) == expected
    assert len(calls) == 1
    assert len(list(cache.glob("*.arrow"))) == 1


def test_a_change_of_text_or_tokenizer_is_seen(cache, calls):
    larger = make_tokenizer()
    larger.add_tokens(["bb"])
    assert tokenized(TITLES) != tokenized(["a", "bb", "c", "b"])
    assert tokenized(TITLES, larger) != tokenized(TITLES)
    # The same characters, cut elsewhere.
    tokenized(["a", "b", "bc", "d"])
    assert len(calls) == 4


def test_a_cache_that_cannot_be_written_costs_time_only(cache, calls, caplog):
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file in the way")
    assert tokenized(TITLES) == tokenized(TITLES)
    assert len(calls) == 2
    assert "Set HF_HOME to a directory that is" in caplog.text


def test_a_damaged_cache_says_how_to_mend_it(cache):
    tokenized(TITLES)
    (path,) = cache.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"title-tokens-\w+\.arrow: not readable .*; remove the"):
        tokenized(TITLES)
