"""Semantic IDs: the file round trip, collisions, and one clear message per kind of bad file."""

import json

import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.items.semantic_ids import (
    format_codes,
    item_tokens,
    read_semantic_ids,
    resolve_collisions,
    write_semantic_ids,
)


def test_format_codes():
    assert format_codes(np.array([[12, 3, 77]])) == [("<a_12>", "<b_3>", "<c_77>")]


def test_round_trip_in_the_order_asked_for(tmp_path):
    path = tmp_path / "x.index.json"
    write_semantic_ids(path, ["i", "j"], [("<a_1>", "<b_2>"), ("<a_3>", "<b_4>")])
    assert read_semantic_ids(path, ["j", "i"]) == [("<a_3>", "<b_4>"), ("<a_1>", "<b_2>")]
    assert [path.name for path in tmp_path.iterdir()] == ["x.index.json"]


def test_collisions_get_one_more_token_and_the_rest_stays():
    shared, alone = ("<a_1>", "<b_1>"), ("<a_1>", "<b_2>")
    assert resolve_collisions([shared, alone, shared]) == [
        (*shared, "<c_0>"),
        alone,
        (*shared, "<c_1>"),
    ]


def test_resolving_makes_no_new_collision():
    """The token that is added is one that no other item has after the same codes."""
    shared, other = ("<a_1>", "<b_1>"), ("<a_2>", "<b_2>")
    ids = [shared, (*shared, "<c_0>"), shared, other, (*shared, "<c_2>"), shared, other]
    resolved = resolve_collisions(ids)
    assert resolved == [
        (*shared, "<c_1>"),
        (*shared, "<c_0>"),
        (*shared, "<c_3>"),
        (*other, "<c_0>"),
        (*shared, "<c_2>"),
        (*shared, "<c_4>"),
        (*other, "<c_1>"),
    ]
    assert len(set(resolved)) == len(ids)
    assert resolve_collisions(resolved) == resolved


def test_item_tokens_are_sorted_by_level_and_code():
    assert item_tokens([("<a_10>", "<b_0>"), ("<a_9>", "<b_0>")]) == ["<a_9>", "<a_10>", "<b_0>"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"x.index.json:1:2: not valid JSON"),
        ("[]", "expected {item"),
        (json.dumps({"i": ["<a_1>"]}), r"no semantic ID for item 'j' \(1 of 2 items"),
        (json.dumps({"i": ["<a_1>"], "j": "<a_2>"}), "item 'j': expected a list"),
        (json.dumps({"i": ["<a_1>"], "j": []}), "item 'j': expected a list"),
        (json.dumps({"i": ["<a_1>"], "j": ["<a_2>", ""]}), "item 'j': expected a list"),
        (json.dumps({"i": ["<a_1>"], "j": ["<a_\ud800>"]}), "'j': .* has half a character"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "x.index.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_semantic_ids(path, ["i", "j"])


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="ilrec ids"):
        read_semantic_ids(tmp_path / "none.index.json", [])
