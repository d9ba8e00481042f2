"""The digest of a numbering. Another order, other names, or names that are cut elsewhere make
another digest."""

from __future__ import annotations

from ilrec.items.numbering import numbering_digest


def test_every_difference_shows():
    numberings = [
        ["a", "b"],
        ["b", "a"],
        ["a", "c"],
        ["a"],
        ["a", "b", ""],
        ["ab"],
        ["", "ab"],
        [],
        ["\u00e9"],
        ["e\u0301"],
        ["1:a"],
    ]
    assert len({numbering_digest(names) for names in numberings}) == len(numberings)


def test_it_is_the_same_in_every_process():
    """The value is fixed here, because the next version reads what this one saved with it."""
    assert numbering_digest(iter(["a", "\u00e9"])).startswith("7109eab322e40417")
