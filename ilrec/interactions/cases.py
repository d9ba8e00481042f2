"""What is evaluated: for each case a user, the items that the user had before, and the items that a
recommendation should find.

Shapes: C cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ilrec.interactions.ragged import Ragged


@dataclass(frozen=True)
class Cases:
    """users: int64 [C], numbers of the dataset's users; a user may have several cases. histories:
    [C], oldest item first. targets: [C], the relevant items, at least one each, oldest first."""

    users: np.ndarray
    histories: Ragged
    targets: Ragged

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, which: slice | np.ndarray) -> Cases:
        return Cases(self.users[which], self.histories[which], self.targets[which])

    def next_items(self) -> np.ndarray:
        """int64 [C]: the first target of each case, the item that came next."""
        return self.targets.values[self.targets.starts].astype(np.int64)
