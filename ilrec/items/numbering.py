"""A digest of who is number 0, 1, 2, ... What is stored by such numbers carries the digest, and is
not used with another numbering.

Equal shapes prove nothing: two catalogues may have the same size, and one catalogue two orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def numbering_digest(names: Iterable[str]) -> str:
    """SHA-256 of the names of items or users in their order, as hexadecimal text."""
    digest = hashlib.sha256()
    for name in names:
        encoded = name.encode()
        # The length keeps the names "ab", "c" apart from "a", "bc".
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.hexdigest()
