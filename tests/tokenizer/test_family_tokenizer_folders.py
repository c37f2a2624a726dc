"""What a tokenizer reads from its folder besides the vocabulary, and omitting the mask."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers

from mlm.errors import DataError
from mlm.tokenizer.ids import JSON_FILE, MODEL_FILE
from mlm.tokenizer.model_proto import ModelProto
from mlm.tokenizer.published_files import write_tokenizer
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.auto_tokenizer import AutoTokenizer
from tests.tokenizer.tokenizer_fixtures import folder, ours, real_lines

PADDING = {
    "strategy": "BatchLongest",
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 1,
    "pad_type_id": 0,
    "pad_token": "<pad>",
}
TRUNCATION = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}


@pytest.fixture
def copied(tmp_path) -> Path:
    return shutil.copytree(folder(), tmp_path / "copied")


MARKS = ["ọ́ ẹ̀ ṣọ́", "Ọ̀nà tí ó wà", "ệ ộ ữ", "q̣́ n̂ạ̈"]  # letters with marks


@pytest.mark.parametrize("language", ["marks", "yo", "vi", "th", "hi"])
def test_saved_tokenizer_opened_by_transformers_alone_gives_sentencepieces_ids(tmp_path, language):
    """A folder with nothing else in it, so that no model says which class to use."""
    found = [unicodedata.normalize(form, line) for line in MARKS for form in ("NFC", "NFD")]
    lines = found if language == "marks" else real_lines(language, 300)
    ours().save_pretrained(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "saved" / MODEL_FILE))
    expected = [[id + 1 if id else 3 for id in ids] for ids in processor.encode(lines)]
    assert theirs(lines, add_special_tokens=False)["input_ids"] == expected
    theirs.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again", local_files_only=True)
    assert again(lines, add_special_tokens=False)["input_ids"] == expected


def test_attention_mask_is_omitted_on_request():
    options: dict[str, Any] = {"return_attention_mask": False}
    made = ours()
    rows = [{"input_ids": [5]}, {"input_ids": [5, 6]}]
    for batch in (
        made("a b", **options),
        made(["a b", "a"], padding=True, return_tensors="pt", **options),
        made.pad(rows, **options),
    ):
        assert set(batch.keys()) == {"input_ids"}


def test_padding_and_truncation_sides_are_read_from_tokenizer_json(copied):
    config = copied / "tokenizer_config.json"
    values = json.loads(config.read_text())
    for name in ("padding_side", "truncation_side"):
        values.pop(name, None)
    config.write_text(json.dumps(values))
    path = copied / "tokenizer.json"
    held = json.loads(path.read_text()) | {"padding": PADDING, "truncation": TRUNCATION}
    path.write_text(json.dumps(held))
    made = AutoTokenizer.from_pretrained(copied)
    assert (made.padding_side, made.truncation_side) == ("left", "left")


def test_unknown_keys_of_the_config_are_kept(copied, tmp_path):
    config = copied / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"trained_by": "somebody"}))
    AutoTokenizer.from_pretrained(copied).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["trained_by"] == "somebody"


def test_added_tokens_json_with_new_tokens_is_refused(copied):
    (copied / "added_tokens.json").write_text('{"<new>": 4000}')
    with pytest.raises(DataError, match="tokens that were added, such as '<new>'"):
        AutoTokenizer.from_pretrained(copied)


TEXT = "ﬁ①Ａ  a\tb "


def same_as_the_library(path: Path) -> bool:
    """Whether the library's reading of a tokenizer.json gives our ids for TEXT."""
    theirs = tokenizers.Tokenizer.from_file(str(path / JSON_FILE))
    made = AutoTokenizer.from_pretrained(path)
    return made(TEXT)["input_ids"] == theirs.encode(TEXT).ids


def test_tokenizer_json_with_steps_unknown_to_sentencepiece_is_refused(copied):
    """Its ids would differ from those of the library."""
    (copied / MODEL_FILE).unlink()
    path = copied / JSON_FILE
    assert same_as_the_library(copied)
    values = json.loads(path.read_text("utf-8"))
    words = [{"type": "WhitespaceSplit"}, values["pre_tokenizer"]]
    split = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": words}}
    steps = values["normalizer"]["normalizers"]
    rules = next(step for step in steps if step["type"] == "Precompiled")
    for changes, reason in (
        ({"normalizer": None}, "its normaliser leaves several blanks as they are"),
        ({"normalizer": None} | split, "it cuts at white space, of which no rule"),
        ({"normalizer": rules}, "its normaliser leaves several blanks as they are"),
    ):
        path.write_text(json.dumps(values | changes), encoding="utf-8")
        with pytest.raises(DataError, match=rf"XLM-R's \({reason}.*\); put {MODEL_FILE} beside it"):
            AutoTokenizer.from_pretrained(copied)
    path.write_text(json.dumps(values | {"normalizer": rules} | split), encoding="utf-8")
    assert same_as_the_library(copied)


def test_model_without_charsmap_is_restored_from_tokenizer_json(copied):
    """As in the export of such a model, where only blanks are normalised."""
    model = ModelProto.FromString((copied / MODEL_FILE).read_bytes())
    model.normalizer_spec.precompiled_charsmap = b""
    (copied / MODEL_FILE).write_bytes(model.SerializeToString())
    expected = Tokenizer.load(copied)
    write_tokenizer(expected, 512, copied)
    (copied / MODEL_FILE).unlink()
    assert Tokenizer.load(copied).same_ids(expected)
    assert same_as_the_library(copied)
