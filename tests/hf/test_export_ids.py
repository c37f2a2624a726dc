"""The tokenizer of exported folders, held against transformers and sentencepiece."""

import lzma
import shutil
from functools import cache
from itertools import islice
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mlm.errors import UserError
from mlm.hf import ids
from mlm.tokenizer.charsmap import normalizer, rules
from mlm.tokenizer.published_files import backend, write_tokenizer
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.training import train
from tests.exported_run import exported
from tests.places import REAL
from tests.text_fixtures import tokenizer

# fmt: off
LANGUAGES = [
    "ar", "bn", "de", "en", "fa", "fi", "he", "hi", "ja", "ko",
    "mr", "pl", "ru", "sw", "ta", "th", "tr", "vi", "yo", "zh-Hans",
]
# fmt: on
LINES = 200
UNUSUAL = [
    "",
    " ",
    "\u3000\u2028",
    "  two   blanks and a tab\there ",
    "👩🏽‍🚀 🇰🇪🇯🇵 ❤️‍🔥 ☃",
    "\x00\x01a\x07b\x1b[0m\x7f\x85\u200b\ufeff\ufffd",
    "▁ ▁▁a▁",
    "ọ̀rọ̀ e\u0323\u0301 e\u0301\u0323 a\u0323\u0302 o\u0331\u0301",
    "か\u3099 ﾊﾞ ᄀ\u1161\u11a8 각\u11a8 ㅎㅏ ㅋㅋㅋ",
    "র\u09c7\u09be \u0b95\u0bc6\u0bbe क\u093c क़ กำ",
    "شَدَّة ב\u05bc\u05b0 ﷺ ½ ﬁ ™ ¨ ª\u0301 ｆｕｌｌ ～",
    "word " * 5000,
    "x" * 3000,
]


@cache
def real_lines() -> dict[str, list[str]]:
    """The first paragraphs of each language."""
    found = {}
    for language in LANGUAGES:
        path = REAL / f"{language}.txt.xz"
        if not path.is_file():
            pytest.skip(f"{path} is not there: it comes with the project's shared data")
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = (line.rstrip("\n") for line in file)
            found[language] = list(islice((line for line in lines if line), LINES))
    return found


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory) -> Tokenizer:
    """A tokenizer of 5,000 ids for twenty languages."""
    folder = tmp_path_factory.mktemp("multilingual")
    (folder / "corpus").mkdir()
    for language, lines in real_lines().items():
        (folder / "corpus" / f"{language}.txt").write_text("\n".join(lines), encoding="utf-8")
    train(folder / "corpus", folder / "tokenizer", 5000)
    return Tokenizer.load(folder / "tokenizer")


@pytest.fixture(scope="module")
def in_transformers(multilingual, tmp_path_factory):
    """The same one, written as an export does and loaded by transformers."""
    folder = tmp_path_factory.mktemp("folder")
    write_tokenizer(multilingual, 512, folder)
    shutil.copy(exported() / "config.json", folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("language", [*LANGUAGES, "unusual"])
def test_exported_tokenizer_gives_the_ids_of_sentencepiece(language, multilingual, in_transformers):
    lines = UNUSUAL if language == "unusual" else real_lines()[language]
    assert language == "unusual" or len(lines) == LINES
    processor = sentencepiece.SentencePieceProcessor(model_file=str(multilingual.model_path))
    expected = [[3 if id == 0 else id + 1 for id in ids] for ids in processor.encode(lines)]
    assert [ids.tolist() for ids in multilingual.encode(lines)] == expected
    found = in_transformers(lines, add_special_tokens=False).input_ids
    assert found == expected
    assert in_transformers(lines).input_ids == [[0, *ids, 2] for ids in expected]
    pairs = in_transformers(lines, lines[::-1]).input_ids
    turned = zip(expected, expected[::-1], strict=True)
    assert pairs == [[0, *one, 2, 2, *two, 2] for one, two in turned]


def test_check_ids_allows_ties_only(multilingual):
    """Scores of models trained elsewhere are not rounded, and fp32 sums then decide ties."""
    theirs = backend(multilingual)
    lines = {str(number): line for number, line in enumerate(real_lines()["ko"])}
    ids.check_ids(multilingual, theirs, lines)
    whole = multilingual.encode(["kabu"])[0].tolist()
    assert ids.tie(multilingual, whole, whole)
    letters = multilingual.encode(["k", "abu"])
    assert not ids.tie(multilingual, [*letters[0].tolist(), *letters[1].tolist()], whole)
    theirs.normalizer = tokenizers.normalizers.Strip()
    with pytest.raises(UserError, match=r"gives other ids than sentencepiece to a line of ti, 'ｋ"):
        ids.check_ids(multilingual, theirs, {"ti": "ｋａｂｕ"})


@cache
def normalizers() -> tuple[sentencepiece.SentencePieceNormalizer, Any, list[str]]:
    """Sentencepiece's own normalizer, ours, and the strings that its rules replace."""
    raw, charsmap = tokenizer().model_path.read_bytes(), tokenizer().charsmap
    found = rules(charsmap)
    theirs = sentencepiece.SentencePieceNormalizer(model_proto=raw)
    return theirs, normalizer(charsmap), sorted(found)


PARTS = st.one_of(
    st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]),
    st.sampled_from("aeoABω \u0323\u0300\u0302\u0331\u0345\u064e\u0651\u093cㅏᆨ각가\u200d🏽¨"),
    st.integers(0, 225_000).map(lambda place: normalizers()[2][place % len(normalizers()[2])]),
)


@given(st.lists(PARTS, max_size=12).map("".join))
@example("\u0341").via("a mark at the start")
@example("o\u0323\u0300").via("two marks, of which one composes")
@settings(max_examples=400, deadline=None)
def test_normalizer_gives_the_text_of_sentencepiece(text):
    theirs, ours, _ = normalizers()
    if max(text, default="") >= "\U000105c9":
        return  # scripts that came after the Unicode of the tokenizers library
    expected = theirs.normalize(text).replace("▁", " ").strip(" ")
    assert ours.normalize_str(text) == expected


def test_charsmap_rules_are_read_from_the_model():
    _, _, sources = normalizers()
    assert len(sources) > 200_000
    assert {"ﬁ", "e\u0301", "ᄀ\u1161\u11a8", "\t"} <= set(sources)
