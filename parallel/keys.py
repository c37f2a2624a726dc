"""Keys: every random choice is a function of what it is for, never of what was drawn before it."""

from hashlib import blake2b


def key(*parts: int | str) -> int:
    """A 63-bit key of `parts`, the same on every machine and in every process.

    `key(seed, "mask", sample)`: the parts name the choice. Their types count, so 1 and "1" differ.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return int.from_bytes(digest.digest(), "little") >> 1


def subkey(parent: int | None, *parts: int | str) -> int | None:
    """`key(parent, *parts)`; without a parent there is none: torch's own generator is used."""
    return None if parent is None else key(parent, *parts)
