"""What a tokenizer takes from its folder beside the vocabulary, and a mask that is not wanted."""

import json
import shutil
from pathlib import Path

import pytest

from mlm.errors import DataError
from mlm.tokenizer.auto import AutoTokenizer
from tests.tokenizer_fixtures import folder, ours

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


def test_a_mask_that_is_not_wanted():
    options = {"return_attention_mask": False}
    made = ours()
    rows = [{"input_ids": [5]}, {"input_ids": [5, 6]}]
    for batch in (
        made("a b", **options),
        made(["a b", "a"], padding=True, return_tensors="pt", **options),
        made.pad(rows, **options),
    ):
        assert set(batch.keys()) == {"input_ids"}


def test_sides_of_tokenizer_json(copied):
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


def test_a_key_that_is_not_known_is_kept(copied, tmp_path):
    config = copied / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"trained_by": "somebody"}))
    AutoTokenizer.from_pretrained(copied).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["trained_by"] == "somebody"


def test_added_tokens_in_a_file_of_their_own_are_refused(copied):
    (copied / "added_tokens.json").write_text('{"<new>": 4000}')
    with pytest.raises(DataError, match="tokens that were added, such as '<new>'"):
        AutoTokenizer.from_pretrained(copied)
