"""Sentencepiece's normalisation, built from the steps that the tokenizers library has.

A sentencepiece model has rules: strings of one to four characters and their replacements. They are
applied from left to right, the longest match first. The library's `Precompiled` reads the same
rules but applies them to grapheme clusters: of "ọ̀" written as "o", dot and grave, it finds the
rule for "o" and dot and drops the grave, which damages a third of all lines of Yoruba, and it never
composes a cluster of six bytes or more (Bengali "ো" in two characters).

Every rule for several characters equals the rules for its single characters followed by composition
(NFC). So noncharacters are inserted first: `APART` between rules, where NFC would compose or
reorder across, and `SINGLE` between the characters of a cluster, which are thus mapped one by one.
"""

import re
import struct
from collections import defaultdict
from functools import cache

import numpy as np
from tokenizers import Regex, normalizers

APART, SINGLE = "\U0010ffff", "\U0010fffe"
# Characters that join the one before them in a cluster; the rules add further ones.
JOINING = r"\p{M}\x{200C}\x{200D}\x{E33}\x{EB3}\x{1F3FB}-\x{1F3FF}\x{E0020}-\x{E007F}"


@cache
def normalizer(charsmap: bytes) -> normalizers.Normalizer:
    """The normaliser of a model with this charsmap (may be empty). As sentencepiece does, it also
    removes blanks at both ends, and all but one of several in a row."""
    spaces = [
        normalizers.Replace(Regex(r"\A +| +\z"), ""),
        normalizers.Replace(Regex(" {2,}"), " "),
    ]
    mapped = _by_rules(charsmap) if charsmap else []
    return normalizers.Sequence(mapped + spaces)


def rules(charsmap: bytes) -> dict[str, str]:
    """The rules of a charsmap: a trie of strings (Darts, 32-bit units), then their replacements."""
    (size,) = struct.unpack_from("<I", charsmap)
    units = np.frombuffer(charsmap, "<u4", size // 4, offset=4).astype(np.int64)
    texts = charsmap[4 + size :]
    places = np.arange(len(units))
    labels = np.where(units >> 31, 0, units & 0xFF)
    order = np.argsort(places ^ labels, kind="stable")
    order = order[labels[order] > 0]
    parents = (places ^ labels)[order]  # the base of each node's parent
    starts = places ^ ((units >> 10) << ((units & 0x200) >> 6))  # the base of each node's children

    found: dict[str, str] = {}
    strings, bases = np.empty((1, 0), np.uint8), starts[:1]
    while len(bases):
        first = np.searchsorted(parents, bases)
        counts = np.searchsorted(parents, bases, side="right") - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        nodes = order[np.repeat(first, counts) + within]
        rows = np.repeat(strings, counts, axis=0)
        strings = np.column_stack([rows, labels[nodes].astype(np.uint8)])
        bases = starts[nodes]
        for row in np.flatnonzero(units[nodes] >> 8 & 1):
            start = int(units[bases[row]] & 0x7FFFFFFF)
            text = texts[start : texts.index(b"\0", start)]
            found[strings[row].tobytes().decode()] = text.decode()
    return found


def _by_rules(charsmap: bytes) -> list[normalizers.Normalizer]:
    found = rules(charsmap)
    several = [source for source in found if len(source) > 1]
    if not several:
        return [normalizers.Precompiled(charsmap)]
    later = {character for source in several for character in source[1:]}
    later |= {source for source, text in found.items() if len(source) == 1 and text[:1] in later}
    inside = f"{JOINING}{_ranges(later)}"
    joining, rule = f"[{inside}]", f"(?>{_alternatives(several)}|(?m:.))"
    # \G and the atomic groups keep the search at the bounds of rules and its time linear.
    passed = f"(?>(?:[^{inside}]+(?!{joining})|{rule}(?!{joining}))*)"
    apart = rf"\G{passed}{rule}\K(?={joining})"
    return [
        normalizers.Replace(Regex(apart), APART),
        normalizers.Replace(Regex(rf"(?<!\A)(?={joining})"), SINGLE),
        normalizers.Precompiled(charsmap),
        normalizers.Replace(SINGLE, ""),
        normalizers.NFC(),
        normalizers.Replace(APART, ""),
    ]


def _alternatives(strings: list[str]) -> str:
    """A regular expression for any of `strings`, the longest that matches."""
    tree: dict = {}
    for string in strings:
        node = tree
        for character in string:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(tree)


def _expression(node: dict) -> str:
    by_rest = defaultdict(set)
    for character, rest in node.items():
        if character:
            by_rest[_expression(rest)].add(character)
    if not by_rest:
        return ""
    options = [f"[{_ranges(characters)}]{rest}" for rest, characters in by_rest.items()]
    return f"(?:{'|'.join(options)}){'?' if '' in node else ''}"


def _ranges(characters: set[str]) -> str:
    """`characters` as the inside of a character class, with runs as ranges."""
    codes = np.array(sorted(map(ord, characters)))
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return "".join(
        re.escape(chr(run[0])) + (f"-{re.escape(chr(run[-1]))}" if len(run) > 1 else "")
        for run in runs
    )
