"""Order, duplicates, k-core, lengths and titles: by hand, and against a slow reference on random
data."""

from __future__ import annotations

import numpy as np
import pytest

from ilrec.errors import InputError
from ilrec.interactions.importers import RawInteractions
from ilrec.interactions.preparation import (
    Filters,
    clean_title,
    format_statistics,
    prepare,
    statistics,
    with_titles,
)

NONE = Filters(k_core=0, repeats="all")


def raw_of(rows: list[tuple[str, str, int]]) -> RawInteractions:
    raw = RawInteractions()
    for row in rows:
        raw.add(*row)
    return raw


def prepared(rows: list[tuple[str, str, int]], filters: Filters) -> dict[str, list[str]]:
    dataset, _ = prepare(raw_of(rows), "own", filters)
    rows_by_user = zip(dataset.user_ids, dataset.sequences, strict=True)
    return {user: [dataset.item_ids[item] for item in row.tolist()] for user, row in rows_by_user}


def test_time_order_with_ties_in_file_order():
    rows = [("u", "c", 5), ("u", "b", 2), ("u", "a", 2), ("u", "d", 1)]
    assert prepared(rows, NONE) == {"u": ["d", "b", "a", "c"]}


def test_the_first_of_repeats_in_time_not_in_file():
    rows = [("u", "a", 9), ("u", "b", 2), ("u", "a", 1), ("u", "c", 3), ("u", "d", 4)]
    assert prepared(rows, Filters(k_core=0)) == {"u": ["a", "b", "c", "d"]}
    assert prepared(rows, NONE) == {"u": ["a", "b", "c", "d", "a"]}


def test_lengths():
    """v has two items and cannot be split; u keeps its newest three of four, w has too few for
    min_items 4."""
    rows = (
        [("u", str(i), i) for i in range(4)]
        + [("v", "0", 1), ("v", "1", 2)]
        + [("w", str(i), i) for i in range(3)]
    )
    dataset, removed = prepare(raw_of(rows), "own", Filters(k_core=0, min_items=4, max_items=3))
    assert (
        list(dataset.user_ids) == ["u"]
        and dataset.sequences[0].tolist() == [0, 1, 2]
        and dataset.item_ids == ["1", "2", "3"]
    )
    assert (
        removed == {"repeats": 0, "k_core": 0, "min_items": 5, "max_items": 1}
        and dataset.num_dropped_users == 2
    )


FEWER = [("k_core", -1, 0), ("min_items", 2, 3), ("max_items", 2, 3), ("max_items", -1, 3)]


@pytest.mark.parametrize(("name", "value", "least"), FEWER)
def test_filters_that_leave_users_without_three_items(name: str, value: int, least: int):
    """A user's last item is for the test, the one before for validation: fewer than three leave
    none to train on."""
    with pytest.raises(InputError, match=f"^{name}: expected {least} or more, got {value}$"):
        Filters(**{name: value})


def test_numbers_do_not_depend_on_the_order_of_the_file():
    rows = [(user, item, when) for user in ("10", "9") for when, item in enumerate(("b", "a", "c"))]
    one, other = (prepare(raw_of(given), "own", NONE)[0] for given in (rows, rows[3:] + rows[:3]))
    assert list(one.user_ids) == list(other.user_ids) == [
        "9",
        "10",
    ] and one.item_ids == other.item_ids == ["a", "b", "c"]
    assert (
        [r.tolist() for r in one.sequences]
        == [r.tolist() for r in other.sequences]
        == [[1, 0, 2]] * 2
    )


@pytest.mark.parametrize("seed", range(5))
def test_against_a_slow_reference(seed: int):
    """400 random interactions: sort, first of repeats, remove users and items below k until none
    is, newest of the rest."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{rng.integers(25)}", f"i{rng.integers(30)}", int(rng.integers(50))) for _ in range(400)
    ]
    kept, seen = [], set()
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        if (user, item) not in seen:
            kept.append((user, item))
            seen.add((user, item))
    while True:
        users, items = [u for u, _ in kept], [i for _, i in kept]
        fewer = [(u, i) for u, i in kept if users.count(u) >= 6 and items.count(i) >= 6]
        if fewer == kept:
            break
        kept = fewer
    expected: dict[str, list[str]] = {}
    for user, item in kept:
        expected.setdefault(user, []).append(item)
    assert prepared(rows, Filters(k_core=6, max_items=9)) == {
        user: items[-9:] for user, items in expected.items()
    }
    assert 0 < len(expected)


def test_nothing_left_says_what_removed_it():
    with pytest.raises(
        InputError,
        match=r"own: no interaction is left of 3 \(removed by repeats 0, k_core 3, min_items 0\); lower",
    ):
        prepare(raw_of([("u", str(i), i) for i in range(3)]), "own", Filters(k_core=5))


@pytest.mark.parametrize(
    ("title", "clean"),
    [
        ("Tom &amp;amp; Jerry&#39;s", "Tom & Jerry's"),
        ("a\x00b\tc\u200bd\n e", "a b c d e"),
        ("<b>Bold</b> 3 < 4", "Bold 3 < 4"),
        ("  &nbsp; ", ""),
        ("Dreißig é", "Dreißig é"),
        ("co\u00adoperate\ufeff", "cooperate"),
        ("half \ud83d emoji", "half emoji"),
        ("\U0001f469\u200d\U0001f52c", "\U0001f469\u200d\U0001f52c"),
    ],
)
def test_titles_are_cleaned(title: str, clean: str):
    assert clean_title(title) == clean


def test_titles_and_statistics():
    """Lengths 3 and 5 over 5 items: 8 interactions, density .8; two of five items have no title."""
    rows = [("u", str(i), i) for i in range(3)] + [("v", str(i), i) for i in range(5)]
    dataset = with_titles(
        prepare(raw_of(rows), "own", NONE)[0],
        {"0": "A", "1": " &nbsp;", "2": "C", "3": "D", "9": "X"},
    )
    assert dataset.titles == ["A", "", "C", "D", ""]
    found = statistics(dataset)
    assert (found["users"], found["items"], found["interactions"], found["density"]) == (
        2,
        5,
        8,
        0.8,
    )
    assert (
        found["items per user, 50%"],
        found["items per user, most"],
        found["items without a title"],
    ) == (4.0, 5, 2)
    assert format_statistics(found).splitlines()[3].split() == ["density", "0.8"]
    assert with_titles(dataset, {}).titles is None
