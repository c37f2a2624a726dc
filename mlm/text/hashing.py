"""Hashes of text, for choices that depend on nothing but the text."""

from collections.abc import Iterable
from hashlib import blake2b

HASH_BITS = 64


def text_hash(paragraphs: Iterable[str], purpose: str) -> int:
    """A 64-bit hash of a document, independent between purposes (of at most 64 bytes)."""
    digest = blake2b(digest_size=HASH_BITS // 8, key=purpose.encode())
    for paragraph in paragraphs:
        digest.update(paragraph.encode())
        digest.update(b"\n")
    return int.from_bytes(digest.digest(), "little")
