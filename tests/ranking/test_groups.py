"""Groups of users and items, by hand."""

import numpy as np

from ilrec.ranking.groups import history_groups, interaction_counts, popularity_groups


def test_users_are_cut_at_the_quartiles():
    groups = history_groups(np.array([9, 1, 2, 3, 4, 5, 6, 30]))
    assert groups.names == ("1 to 2", "3 to 4", "5 to 6", "9 to 30")
    assert groups.numbers.tolist() == [3, 0, 0, 1, 1, 2, 2, 3]


def test_equal_lengths_stay_together_and_new_users_are_apart():
    """Three quartiles of 3, 3, 3, 3, 3, 8 are 3, so there are two groups; and one of new users."""
    groups = history_groups(np.array([3, 8, 0, 3, 3, 3, 3]))
    assert groups.names == ("0", "3", "8")
    assert groups.numbers.tolist() == [1, 2, 0, 1, 1, 1, 1]
    assert history_groups(np.array([0, 0])).names == ("0",)


def test_items_by_cumulative_popularity():
    """10 interactions: item 3 has 4, then items 1 and 4 have 2 each, and 0 and 5 one each.

    Before them lie 0, 4, 6, 8 and 9 of 10. Item 3 is head; 1 and 4 are middle; 0 and 5, before
    which 80 % and 90 % lie, are tail. Item 2 is cold.
    """
    groups = popularity_groups(np.array([1, 2, 0, 4, 2, 1]))
    names = [groups.names[number] for number in groups.numbers]
    assert names == ["tail", "middle", "cold", "head", "middle", "tail"]


def test_counts():
    sequences = [np.array([0, 2, 2]), [], np.array([2])]
    assert interaction_counts(sequences, 4).tolist() == [1, 0, 3, 0]
    assert interaction_counts([], 2).tolist() == [0, 0]
