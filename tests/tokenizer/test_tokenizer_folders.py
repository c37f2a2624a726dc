"""Tokenizers of sentencepiece that are refused before anything is made with them."""

import io
import json
from functools import cache
from pathlib import Path

import pytest
import sentencepiece

from mlm.data.prepare import write_shards
from mlm.data.writing.shards import Options
from mlm.errors import DataError
from mlm.tokenizer.folder import AddedTokens, open_consistent, open_for_training
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.published_files import backend
from mlm.tokenizer.tokenizer import Tokenizer
from tests.launch.launch_fixtures import quiet
from tests.text_fixtures import corpus, paragraphs

TRAINED = {
    "sound": {},
    "bpe": {"model_type": "bpe"},
    "bytes": {"byte_fallback": True},
    "symbols": {"user_defined_symbols": ["[X]"]},
    "no-prefix": {"add_dummy_prefix": False},
    "spaces": {"remove_extra_whitespaces": False},
    "suffix": {"treat_whitespace_as_suffix": True},
    "pad": {"pad_id": 3},
    "control": {"control_symbols": ["[CLS]"]},
    "names": {"bos_piece": "[CLS]", "eos_piece": "[SEP]"},
    "order": {"bos_id": 0, "eos_id": 1, "unk_id": 2},
    "mask": {"user_defined_symbols": ["<mask>"]},
}
WORDS = {
    "bpe": "is not of the type unigram",
    "bytes": "has pieces that are bytes, unused or user-defined",
    "symbols": "has pieces that are bytes, unused or user-defined",
    "no-prefix": "has a normalisation other than XLM-R's",
    "spaces": "has a normalisation other than XLM-R's",
    "suffix": "puts the space after a word",
    "pad": r"has the special piece <pad> with the id 3, .* for --pad_id or",
    "control": r"has the special piece \[CLS\] with the id 3, .* or --control_symbols",
    "names": r"begins with the pieces <unk>, \[CLS\], \[SEP\], and XLM-R's with <unk>, <s>, </s>",
    "order": r"begins with the pieces <s>, </s>, <unk>, and XLM-R's with",
    "mask": "has <mask> as a piece of text, with the id 3, which is a special one",
}


@cache
def model(kind: str) -> bytes:
    """What sentencepiece trains with its own options."""
    written, lines = io.BytesIO(), paragraphs("en", 60)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4),
        model_writer=written,
        vocab_size=400 if kind == "bytes" else 150,
        minloglevel=2,
        **TRAINED[kind],
    )
    return written.getvalue()


def folder_of(kind: str, place: Path) -> Path:
    place.mkdir(parents=True)
    (place / MODEL_FILE).write_bytes(model(kind))
    return place


def write(folder: Path, out: Path) -> None:
    write_shards(corpus(), folder, out, 1, quiet(), Options())


@pytest.mark.parametrize("kind", WORDS)
def test_shards_refuse_a_tokenizer_that_an_export_could_not_write(kind, tmp_path):
    folder = folder_of(kind, tmp_path / kind)
    with pytest.raises(DataError, match=WORDS[kind]) as raised:
        write(folder, tmp_path / "out")
    assert str(folder) in str(raised.value)
    assert "`mlm tokenizer`" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_open_for_training_takes_a_model_of_sentencepieces_own_defaults(tmp_path):
    folder = folder_of("sound", tmp_path / "sound")
    assert open_for_training(folder).size == 152
    write(folder, tmp_path / "out")


def test_shards_refuse_tokens_that_were_added_and_a_file_that_disagrees(tmp_path):
    folder = folder_of("sound", tmp_path / "sound")
    made = json.loads(backend(Tokenizer.load(folder)).to_str())
    (folder / JSON_FILE).write_text(json.dumps(made))
    assert open_consistent(folder).size == 152
    token = made["added_tokens"][-1] | {"id": 152, "content": "ACME"}
    added = made | {"added_tokens": [*made["added_tokens"], token]}
    (folder / JSON_FILE).write_text(json.dumps(added))
    with pytest.raises(AddedTokens, match="such as 'ACME' with the id 152"):
        write(folder, tmp_path / "out")
    made["model"]["vocab"][10][1] -= 1.0
    (folder / JSON_FILE).write_text(json.dumps(made))
    with pytest.raises(DataError, match="gives other ids than"):
        write(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
