"""Hashes of text, for choices that depend on the text alone."""

from collections.abc import Iterable
from functools import cache
from hashlib import blake2b

HASH_BITS = 64


def text_hash(paragraphs: Iterable[str], purpose: str) -> int:
    """A 64-bit hash of a document, independent between purposes (of at most 64 bytes)."""
    return bytes_hash("".join(f"{paragraph}\n" for paragraph in paragraphs).encode(), purpose)


def bytes_hash(document: bytes, purpose: str) -> int:
    """`text_hash` of a document in which every paragraph ends with a line end."""
    digest = _keyed(purpose).copy()
    digest.update(document)
    return int.from_bytes(digest.digest(), "little")


@cache
def _keyed(purpose: str) -> blake2b:
    """Copied for each text, which is faster than hashing the key again."""
    return blake2b(digest_size=HASH_BITS // 8, key=purpose.encode())
