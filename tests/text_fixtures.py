"""A small synthetic corpus, its tokenizer and its shards, made once per process."""

import random
import tempfile
from functools import cache
from pathlib import Path

import pytest

from mlm.data.writing import shards, tars
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.training import train

# Letters of a language, whether it puts spaces between words, documents, paragraphs in each.
LANGUAGES = {
    "el": ("αβγδεζηθικλμνξοπρστυφχψω", " ", 6, 8),
    "en": ("abcdefghijklmnopqrstuvwxyz", " ", 150, 6),
    "ja": ("あいうえおかきくけこさしすせそ", "", 25, 4),
    "sw": ("abdefghijklmnoprstuvwyz", " ", 40, 5),
}


def paragraphs(language: str, count: int) -> list[str]:
    """Random text of a language's letters: the same in every call, no paragraph twice."""
    letters, space, _, _ = LANGUAGES[language]
    random_ = random.Random(f"{language} {count}")
    words = ["".join(random_.choices(letters, k=random_.randint(2, 6))) for _ in range(150)]
    return [
        space.join(random_.choice(words) for _ in range(random_.randint(5, 25))).capitalize() + "."
        for _ in range(count)
    ]


def documents_of(language: str) -> list[list[str]]:
    """The documents of a language in `write_corpus`."""
    _, _, documents, each = LANGUAGES[language]
    text = paragraphs(language, documents * each)
    return [text[first : first + each] for first in range(0, len(text), each)]


def write_corpus(folder: Path) -> Path:
    """A corpus folder of four languages and three scripts; `el` has few documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        text = "\n\n".join("\n".join(document) for document in documents_of(language))
        (folder / f"{language}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


@cache
def _folder() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="polymlm-")
    _kept.append(holder)  # removed when the process ends
    return Path(holder.name)


_kept: list[tempfile.TemporaryDirectory] = []


@cache
def corpus() -> Path:
    return write_corpus(_folder() / "corpus")


@cache
def tokenizer() -> Tokenizer:
    train(corpus(), _folder() / "tokenizer", vocab_size=400)
    return Tokenizer.load(_folder() / "tokenizer")


@cache
def shards_folder() -> Path:
    shards.write(corpus(), tokenizer(), _folder() / "shards", workers=1)
    return _folder() / "shards"


def small_shards(out: Path, sample_ids: int, shard_samples: int) -> Path:
    """Shards of that corpus in many samples and tars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tars, "SAMPLE_IDS", sample_ids)
        patch.setattr(tars, "SHARD_SAMPLES", shard_samples)
        shards.write(corpus(), tokenizer(), out, workers=1)
    return out
