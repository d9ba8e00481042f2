"""Who is number 0, 1, 2, ...: what is indexed by such numbers carries a digest of it, and is used
with no other numbering.

Equal shapes prove nothing: two catalogues may have one size, and one catalogue two orders.
"""

from __future__ import annotations

from collections.abc import Iterable

from ilrec.files.digests import blocks_digest


def numbering_digest(names: Iterable[str]) -> str:
    """SHA-256 of the names, of items or of users, in their order."""
    encoded = (name.encode() for name in names)
    # The length keeps the names `ab`, `c` apart from `a`, `bc`.
    return blocks_digest(b"%d:%b" % (len(name), name) for name in encoded)
