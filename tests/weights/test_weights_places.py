"""Which file a weight is read from, and all of it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mlm
from mlm.errors import DataError
from mlm.weights import files
from mlm.weights.source import open_weights
from tests.family.family_fixtures import our_model
from tests.published_folders import MASKED, tensors

INDEX, BIN = "model.safetensors.index.json", "pytorch_model.bin"


def sharded(folder: Path) -> Path:
    our_model(MASKED, init={"seed": 1}).save_pretrained(folder, max_shard_size=30_000)
    return folder


def test_open_file_reads_more_bytes_than_one_read_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "AT_ONCE", 100)
    our_model(MASKED, init={"seed": 1}).save_pretrained(tmp_path)
    held, weights = tensors(tmp_path), open_weights(tmp_path)
    for name in weights.shapes:
        assert torch.equal(weights.read(name), held[name]), name


def test_open_weights_follows_the_index_where_two_files_have_a_weight(tmp_path):
    folder = sharded(tmp_path)
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    expected = tensors(folder)
    first, *_, last = listed
    for name in (first, last):
        for path in folder.glob("*.safetensors"):
            if path.name != listed[name]:
                save_file(load_file(path) | {name: torch.zeros_like(expected[name])}, path)
        assert torch.equal(open_weights(folder).read(name), expected[name])


def test_open_weights_refuses_an_index_with_other_folders(tmp_path):
    folder = sharded(tmp_path / "model")
    outside = tmp_path / "model.safetensors"
    save_file(tensors(folder), outside)
    path = folder / INDEX
    values = json.loads(path.read_text())
    for place in (f"../{outside.name}", str(outside)):
        values["weight_map"] = dict.fromkeys(values["weight_map"], place)
        path.write_text(json.dumps(values))
        with pytest.raises(DataError, match="and no such file is beside it"):
            open_weights(folder)


def test_open_weights_prefers_safetensors(tmp_path):
    ours = our_model(MASKED, init={"seed": 1})
    ours.save_pretrained(tmp_path)
    zeros = {name: torch.zeros_like(each) for name, each in ours.state_dict().items()}
    torch.save(zeros, tmp_path / BIN)
    again = mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(again.get_input_embeddings().weight, ours.get_input_embeddings().weight)
    again.save_pretrained(tmp_path)
    assert not (tmp_path / BIN).exists()
