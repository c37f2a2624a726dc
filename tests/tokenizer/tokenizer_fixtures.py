"""A tokenizer of 31 languages, read by us and by transformers, and text for both."""

import lzma
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer as TheirAuto
from transformers import XLMRobertaTokenizer as Theirs

from mlm.text.corpus import sample_corpus
from mlm.tokenizer.family.tokenizer import XLMRobertaTokenizer
from mlm.tokenizer.published_files import write_tokenizer
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tokenizer.training import train
from mlm.trained.auto_tokenizer import AutoTokenizer
from tests.places import REAL

LIMIT = 512
UNUSUAL = [
    "",
    " ",
    "\u3000\u2028",
    "  two   blanks and a tab\there ",
    "👩🏽‍🚀 🇰🇪🇯🇵 ❤️‍🔥 ☃ ½ ﬁne ｆｕｌｌ",
    "\x00\x01a\x07b\x1b[0m\x7f\u200b\ufeff\ufffd",
    "ọ̀rọ̀ e\u0323\u0301 o\u0331\u0301",
    "か\u3099 ﾊﾞ ᄀ\u1161\u11a8 각\u11a8 ㅋㅋㅋ",
    "শَدَّة ﷺ क़ กำ",
    "word " * 300,
    "x" * 300,
    "<mask>",
    "a <mask>b<mask> \t<mask>",
    "a</s><s> b <pad> <unk>c < mask> <<s>>",
]


@cache
def folder() -> Path:
    """A Hugging Face folder of the tokenizer, as an export writes it."""
    holder = tempfile.TemporaryDirectory(prefix="polymlm-")
    _kept.append(holder)  # removed when the process ends
    made = Path(holder.name)
    train(sample_corpus(), made / "tokenizer", 4000)
    (made / "folder").mkdir()
    write_tokenizer(Tokenizer.load(made / "tokenizer"), LIMIT, made / "folder")
    return made / "folder"


_kept: list[tempfile.TemporaryDirectory] = []


@cache
def ours() -> XLMRobertaTokenizer:
    return AutoTokenizer.from_pretrained(folder())


@cache
def theirs() -> Any:
    """The class as it is: it normalises by graphemes, so the ids of some lines differ."""
    transformers.logging.set_verbosity_error()
    return Theirs.from_pretrained(folder(), local_files_only=True)


@cache
def theirs_exact() -> Any:
    """With sentencepiece's normalisation, as an export has it, and the class's rule for blanks."""
    transformers.logging.set_verbosity_error()
    made: Any = TheirAuto.from_pretrained(folder(), local_files_only=True)
    blanks = pre_tokenizers.WhitespaceSplit()
    words = made.backend_tokenizer.pre_tokenizer
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([blanks, words])
    return made


@cache
def real_lines(language: str, count: int = 100) -> list[str]:
    """Lines of real text in a language; skips the test where there are none."""
    path = REAL / f"{language}.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is not there: it comes with the project's shared data")
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
        lines = (line.rstrip("\n") for line in file)
        return list(islice(filter(None, lines), 500, 500 + count))


@cache
def sample_lines(count: int = 4) -> list[str]:
    """The first lines of each language of the sample corpus."""
    found = []
    for path in sorted(sample_corpus().glob("*.txt")):
        found += list(islice(filter(None, path.read_text("utf-8").split("\n")), count))
    return found
