"""Which documents, conversations, modules and users are held out: a hash of each alone decides."""

import hashlib


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, so it stays on its side of a split as others come and go."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
