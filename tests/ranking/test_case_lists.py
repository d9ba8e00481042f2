"""Which cases are ranked."""

from __future__ import annotations

import numpy as np

from ilrec.interactions.cases import Cases
from ilrec.interactions.ragged import Ragged
from ilrec.ranking.case_lists import of_some_users


def test_all_cases_of_evenly_spread_users():
    """Of the users 1, 2, 4, 7 and 9, two are 1 and 4. User 4 has three cases, user 2 one."""
    users = np.array([1, 1, 2, 4, 4, 4, 7, 9])
    rows = Ragged.from_rows([[number] for number in range(8)])
    cases = Cases(users, rows, rows)
    some = of_some_users(cases, 2)
    assert some.users.tolist() == [1, 1, 4, 4, 4]
    assert some.next_items().tolist() == [0, 1, 3, 4, 5]
    assert of_some_users(cases, 0).users.tolist() == users.tolist()
