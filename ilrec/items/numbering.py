"""A digest of who is number 0, 1, 2, ... What is stored by such numbers carries the digest, and is
not used with another numbering.

Equal shapes prove nothing: two catalogues may have the same size, and one catalogue two orders.
"""

from __future__ import annotations

from collections.abc import Iterable

from ilrec.files.digests import blocks_digest


def numbering_digest(names: Iterable[str]) -> str:
    """SHA-256 of the names of items or users in their order, as hexadecimal text."""
    encoded = (name.encode() for name in names)
    # The length keeps the names "ab", "c" apart from "a", "bc".
    return blocks_digest(b"%d:%b" % (len(name), name) for name in encoded)
