"""The k-core, by hand."""

from __future__ import annotations

import numpy as np

from ilrec.interactions.k_core import k_core


def test_k_core_by_hand():
    """k = 2. Item 9 has one interaction and goes. User 3 then has one left and goes. Item 7 then
    has one left, that of user 2, and goes.

    Users 1 and 2 with items 5 and 6 stay: the core.
    """
    users = np.array([1, 1, 2, 2, 2, 3, 3])
    items = np.array([5, 6, 5, 6, 7, 7, 9])
    assert k_core(users, items, 2).tolist() == [True, True, True, True, False, False, False]
    assert k_core(users, items, 1).all()
    assert not k_core(users, items, 4).any()
