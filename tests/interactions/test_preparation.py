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

# (user, item, time)
Rows = list[tuple[str, str, int]]
NONE = Filters(k_core=0, repeats="all")


def raw_of(rows: Rows) -> RawInteractions:
    raw = RawInteractions()
    for row in rows:
        raw.add(*row)
    return raw


def history(user: str, num_items: int) -> Rows:
    """Items 0, 1, 2, ... at times 0, 1, 2, ..."""
    return [(user, str(number), number) for number in range(num_items)]


def prepared(rows: Rows, filters: Filters) -> dict[str, list[str]]:
    """{user: names of the items} after all steps."""
    dataset, _ = prepare(raw_of(rows), "own", filters)
    names_of = {}
    for user, row in zip(dataset.user_ids, dataset.sequences, strict=True):
        names_of[user] = [dataset.item_ids[item] for item in row.tolist()]
    return names_of


def test_time_order_with_ties_in_file_order():
    rows = [("u", "c", 5), ("u", "b", 2), ("u", "a", 2), ("u", "d", 1)]
    assert prepared(rows, NONE) == {"u": ["d", "b", "a", "c"]}


def test_the_first_of_repeats_in_time_not_in_file():
    rows = [("u", "a", 9), ("u", "b", 2), ("u", "a", 1), ("u", "c", 3), ("u", "d", 4)]
    assert prepared(rows, Filters(k_core=0)) == {"u": ["a", "b", "c", "d"]}
    assert prepared(rows, NONE) == {"u": ["a", "b", "c", "d", "a"]}


def test_times_stay_with_their_items():
    """Milliseconds become seconds. The repeat of item a goes, and then the oldest item."""
    rows = [("u", "c", 9_000), ("u", "a", 1_700_000_000_999), ("u", "b", 8_000), ("u", "a", 0)]
    rows += [("u", "d", 7_999), ("t", "a", 3_000), ("t", "b", 2_000), ("t", "c", 1_000)]
    dataset, _ = prepare(raw_of(rows), "own", Filters(k_core=0, max_items=3))
    assert list(dataset.user_ids) == ["t", "u"]
    assert dataset.times is not None
    found = {}
    for user, items, times in zip(dataset.user_ids, dataset.sequences, dataset.times, strict=True):
        names = [dataset.item_ids[item] for item in items.tolist()]
        found[user] = list(zip(names, times.tolist(), strict=True))
    assert found == {
        "t": [("c", 1), ("b", 2), ("a", 3)],
        "u": [("d", 7), ("b", 8), ("c", 9)],
    }


def test_lengths():
    """v has two items and cannot be split. w has three, too few for min_items 4. u keeps the newest
    three of four."""
    rows = history("u", 4) + history("v", 2) + history("w", 3)
    filters = Filters(k_core=0, min_items=4, max_items=3)
    dataset, removed = prepare(raw_of(rows), "own", filters)
    assert list(dataset.user_ids) == ["u"]
    assert dataset.sequences[0].tolist() == [0, 1, 2]
    assert dataset.item_ids == ["1", "2", "3"]
    assert removed == {"repeats": 0, "k_core": 0, "min_items": 5, "max_items": 1}
    assert dataset.num_dropped_users == 2


FEWER = [("k_core", -1, 0), ("min_items", 0, 1), ("max_items", 2, 3), ("max_items", -1, 3)]


@pytest.mark.parametrize(("name", "value", "least"), FEWER)
def test_filters_below_their_least_values(name: str, value: int, least: int):
    """Cut to fewer than three items, no user could be split by order any more."""
    with pytest.raises(InputError, match=f"^{name}: expected {least} or more, got {value}$"):
        Filters(**{name: value})  # type: ignore[arg-type]


def test_numbers_do_not_depend_on_the_order_of_the_file():
    rows = []
    for user in ("10", "9"):
        for when, item in enumerate(("b", "a", "c")):
            rows.append((user, item, when))
    for given in (rows, rows[3:] + rows[:3]):
        dataset, _ = prepare(raw_of(given), "own", NONE)
        assert list(dataset.user_ids) == ["9", "10"]
        assert dataset.item_ids == ["a", "b", "c"]
        assert [row.tolist() for row in dataset.sequences] == [[1, 0, 2]] * 2


def slow_reference(rows: Rows, k: int, max_items: int) -> dict[str, list[str]]:
    """Sort, keep the first of repeats, remove users and items below k until none is left, keep the
    newest of the rest."""
    kept, seen = [], set()
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        if (user, item) not in seen:
            kept.append((user, item))
            seen.add((user, item))
    while True:
        users = [user for user, _ in kept]
        items = [item for _, item in kept]
        fewer = []
        for user, item in kept:
            if users.count(user) >= k and items.count(item) >= k:
                fewer.append((user, item))
        if fewer == kept:
            break
        kept = fewer
    items_of: dict[str, list[str]] = {}
    for user, item in kept:
        items_of.setdefault(user, []).append(item)
    return {user: items[-max_items:] for user, items in items_of.items()}


@pytest.mark.parametrize("seed", range(5))
def test_against_a_slow_reference(seed: int):
    """400 random interactions of 25 users and 30 items."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(400):
        user, item, when = rng.integers(25), rng.integers(30), int(rng.integers(50))
        rows.append((f"u{user}", f"i{item}", when))
    expected = slow_reference(rows, k=6, max_items=9)
    assert len(expected) > 0
    assert prepared(rows, Filters(k_core=6, max_items=9)) == expected


def test_nothing_left_reports_what_removed_it():
    removed = r"own: no interaction is left of 3 \(removed by repeats 0, k_core 3, min_items 0\)"
    with pytest.raises(InputError, match=f"{removed}; lower"):
        prepare(raw_of(history("u", 3)), "own", Filters(k_core=5))


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
    """3 and 5 items of 5: 8 interactions, density 8 / (2 * 5) = .8, median 4. Two of the five items
    have no title."""
    without_titles, _ = prepare(raw_of(history("u", 3) + history("v", 5)), "own", NONE)
    raw_titles = {"0": "A", "1": " &nbsp;", "2": "C", "3": "D", "9": "X"}
    dataset = with_titles(without_titles, raw_titles)
    assert dataset.titles == ["A", "", "C", "D", ""]
    assert with_titles(dataset, {}).titles is None

    values = statistics(dataset)
    assert values["users"] == 2
    assert values["items"] == 5
    assert values["interactions"] == 8
    assert values["density"] == 0.8
    assert values["items per user, 50%"] == 4.0
    assert values["items per user, most"] == 5
    assert values["items without a title"] == 2
    assert format_statistics(values).splitlines()[3].split() == ["density", "0.8"]
