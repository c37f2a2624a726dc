"""Where words begin, in real text of many scripts."""

import re
import unicodedata

import numpy as np
import pytest
from transformers import AutoTokenizer

from mlm.data.batches.words import UNSPACED, Words
from mlm.text.corpus import sample_corpus
from mlm.tokenizer.ids import BOS, EOS
from mlm.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.tokenizer_fixtures import folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(folder())


@pytest.fixture(scope="module")
def words(tokenizer) -> Words:
    return Words(tokenizer.vocabulary)


def lines(language: str) -> list[str]:
    path = next(sample_corpus().glob(f"{language}.txt*"))
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def cut(tokenizer: Tokenizer, words: Words, line: str) -> list[str]:
    """The words of a line, joined from their pieces."""
    ids = tokenizer.encode([line])[0]
    begins = words(ids[None])[0]
    pieces, found = tokenizer.surfaces(line), []  # the text itself where a piece is unknown
    for piece, new in zip(pieces, begins, strict=True):
        if new:
            found.append("")
        found[-1] += piece
    return found


@pytest.mark.parametrize("language", ["en", "ru", "el", "ar", "hi", "sw"])
def test_words_of_spaced_scripts_are_split_at_spaces_and_punctuation(tokenizer, words, language):
    """Compared with Python's splitting at white space and punctuation."""
    count = 0
    for line in lines(language)[:40]:
        text = tokenizer.normalised(line)[0].replace("▁", " ")
        marked = "".join(
            f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in text
        ).split()
        found = [word.replace("▁", "") for word in cut(tokenizer, words, line)]
        singles = [
            part
            for word in found
            if word
            for part in (list(word) if unicodedata.category(word[0])[0] in "PS" else [word])
        ]
        assert singles == marked, line
        count += len(marked)
    assert count > 200


def test_words_without_punctuation_are_those_of_transformers(words):
    """The fast tokenizer of transformers numbers the words of a text."""
    theirs = AutoTokenizer.from_pretrained(folder())
    for line in lines("en")[:40]:
        plain = re.sub(r"[^\w\s]|_", " ", line)
        given = theirs(plain, add_special_tokens=False)
        ids = np.array(given["input_ids"])
        numbers = np.array(given.word_ids())
        assert np.array_equal(words(ids[None])[0], np.diff(numbers, prepend=-1) > 0)


@pytest.mark.parametrize(
    ("language", "script"),
    [("ja", "hiragana"), ("zh-Hans", "han"), ("th", "thai")],
)
def test_words_of_unspaced_text_are_runs_of_one_script(tokenizer, words, language, script):
    size, blocks = UNSPACED[script]
    inside = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in blocks) + "]+")
    found = [
        word.lstrip("▁") for line in lines(language)[:40] for word in cut(tokenizer, words, line)
    ]
    pieces = set(tokenizer.vocabulary)
    known = set("".join(pieces))  # unknown text belongs to its neighbours
    mixed = [p for p in pieces if inside.search(p) and not inside.fullmatch(p.lstrip("▁"))]
    own = [word for word in found if word and inside.match(word) and known >= set(word)]
    own = [word for word in own if not any(piece in word for piece in mixed)]
    assert len(own) > 100
    for word in own:
        assert inside.fullmatch(word), word
        # Of the length of words, except for single pieces that are longer.
        longest = max(len(piece) for piece in pieces if piece.lstrip("▁") in word)
        assert len(word) <= size - 1 + longest
    assert 1 < np.mean([len(word) for word in own]) < 2 * size


def test_words_of_special_ids_are_single(tokenizer, words):
    ids = tokenizer.encode(["and so on"])[0]
    row = np.array([[BOS, *ids, EOS, tokenizer.mask, *ids]])
    begins = words(row)[0]
    assert begins[[0, 1, len(ids) + 1, len(ids) + 2, len(ids) + 3]].all()
    alone = words(ids[None])[0]
    assert np.array_equal(begins[1 : len(ids) + 1], alone)


@pytest.mark.parametrize(
    ("pieces", "begins"),
    [
        ("▁a b ▁c", "101"),
        ("▁a $ b", "111"),  # symbols separate words, as punctuation does
        ("▁a + + 😀 b", "11001"),
        ("▁a. b", "11"),  # ends in one class and begins in another
        ("▁a .b b", "110"),
        ("▁a ก", "11"),  # the first and the last of a script's block
        ("▁a \u0e7f", "11"),
        ("ก ข", "10"),
        ("▁กข ค ง จ ฉ", "10010"),  # words of 4 characters, without the mark
        ("กข คง จ", "101"),
        ("▁ ก", "10"),  # a mark alone belongs to the piece after it
    ],
)
def test_words_begin_by_the_rules_of_scripts(pieces, begins):
    """Pieces separated by spaces, by the rules of their scripts."""
    row = pieces.split(" ")
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *row, "<mask>"]
    found = Words(vocabulary)(np.arange(4, 4 + len(row))[None])[0]
    assert "".join(map(str, found.astype(int).tolist())) == begins


@pytest.mark.parametrize("language", ["ja", "zh-Hans", "th"])
def test_words_are_independent_of_the_sentence_before(tokenizer, words, language):
    for line in lines(language)[:10]:
        ids = tokenizer.encode([line])[0]
        alone = words(ids[None])[0]
        for before in (1, 2, 3, 5):
            row = np.array([[BOS, *ids[:before], EOS, *ids]])
            assert np.array_equal(words(row)[0, before + 2 :], alone)
