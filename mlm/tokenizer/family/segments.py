"""Texts cut into the segments that sentencepiece encodes: at special tokens, and between words.

What is written like a special token in a text is that token, as in transformers.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MASK = "<mask>"
SPECIAL = re.compile("<s>|<pad>|</s>|<unk>|<mask>")
# White space before `<mask>` belongs to it: all that Unicode has.
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


@dataclass
class Segments:
    """The segments of several texts.

    strings: what sentencepiece encodes; "" for a special token
    counts: the segments of each text; None: each text is one segment
    starts: the character of its text (of its word) that each segment starts at; empty: all 0
    words: the word of each segment, where texts are given as words; else empty
    special: id and number of characters of each special token, by segment
    """

    strings: list[str]
    counts: list[int] | None = None
    starts: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    special: dict[int, tuple[int, int]] = field(default_factory=dict)


def segments_of(texts: Sequence[str], special_ids: dict[str, int]) -> Segments:
    """The segments of whole texts. Raises ValueError for what is not a string."""
    _check_strings(texts)
    if any("<" in text and SPECIAL.search(text) for text in texts):
        return _cut([[text] for text in texts], special_ids, in_words=False)
    return Segments(list(texts))


def segments_of_words(texts: Sequence[Sequence[str]], special_ids: dict[str, int]) -> Segments:
    """The segments of texts given as words, each of which is encoded by itself."""
    for words in texts:
        _check_strings(words)
    return _cut(texts, special_ids, in_words=True)


def check_characters(texts: Sequence[str]) -> None:
    """Raises ValueError for a lone surrogate, which sentencepiece cannot encode."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds {error.object[error.start]!r}, which is no character of Unicode; read "
            f"it as UTF-8"
        ) from None


def _check_strings(texts: Sequence[str]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"{text!r:.80} is a {type(text).__name__} and not a text; give a string, a list of "
                f"them, or with is_split_into_words=True lists of words"
            )


def _cut(texts: Sequence[Sequence[str]], special_ids: dict[str, int], in_words: bool) -> Segments:
    counts: list[int] = []
    made = Segments([], counts)
    for words in texts:
        before = len(made.strings)
        for number, word in enumerate(words):
            for start, string, token in _cut_at_special(word):
                if token:
                    made.special[len(made.strings)] = special_ids[token], len(string)
                made.strings.append("" if token else string)
                made.starts.append(start)
                if in_words:
                    made.words.append(number)
        counts.append(len(made.strings) - before)
    return made


def _cut_at_special(text: str) -> Iterator[tuple[int, str, str]]:
    """The segments of a text: where each starts, its characters, and its special token or ""."""
    place = 0
    for found in SPECIAL.finditer(text):
        before = text[place : found.start()]
        if found[0] == MASK:
            before = before.rstrip(BLANKS)
        if before:
            yield place, before, ""
        place += len(before)
        yield place, text[place : found.end()], found[0]
        place = found.end()
    if place < len(text):
        yield place, text[place:], ""
