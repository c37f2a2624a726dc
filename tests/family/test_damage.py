"""Folders that are corrupt, cut short, of another shape or of another model: one sentence that
names the file and the tensor."""

import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mlm
from mlm.errors import DataError
from mlm.weights.source import open_weights
from tests.family.family_fixtures import our_model

QUERY = "roberta.encoder.layer.1.attention.self.query.weight"
WORDS = "roberta.embeddings.word_embeddings.weight"
SINGLE, BIN = "model.safetensors", "pytorch_model.bin"


@cache
def state() -> dict[str, torch.Tensor]:
    model = our_model("XLMRobertaXLForMaskedLM", init={"seed": 1})
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def model_folder(tmp_path: Path, form: str = "single") -> Path:
    model = our_model("XLMRobertaXLForMaskedLM", init={"seed": 1})
    model.save_pretrained(tmp_path, max_shard_size=30_000 if form == "shards" else "5GB")
    if form == "bin":
        (tmp_path / SINGLE).unlink()
        torch.save(state(), tmp_path / BIN)
    return tmp_path


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The state with tensors in place of others; None leaves one out."""
    made = state() | tensors
    return {name: tensor.clone() for name, tensor in made.items() if tensor is not None}


def safely(**tensors) -> Callable[[Path], None]:
    return lambda folder: save_file(changed(**tensors), folder / SINGLE)


def cut(name: str, *, end: int | None = None) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:end])

    return damage


def garbage(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(bytes(range(1, 251)) * 40)

    return damage


def header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Writes the header of the file again, after `change`."""

    def damage(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        values = json.loads(raw[8 : 8 + length])
        change(values)
        text = json.dumps(values).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return damage


def index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / f"{SINGLE}.index.json"
        values = json.loads(path.read_text())
        change(values["weight_map"])
        path.write_text(json.dumps(values))

    return damage


def torch_file(make: Callable[[], object]) -> Callable[[Path], None]:
    return lambda folder: torch.save(make(), folder / BIN)


class Code:
    def __reduce__(self):
        return os.system, ("false",)


def lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00005.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        held = load_file(path)
        if held.pop(QUERY, None) is not None:
            save_file(held, path)


def unnamed_model() -> dict[str, torch.Tensor]:
    return {f"bert.{name}": tensor for name, tensor in state().items()}


NARROW = torch.zeros(32, 16)
DAMAGES = {
    "data missing": ("single", cut(SINGLE, end=-10), rf"{SINGLE} is cut short: .*, and \S+\.\S+ "),
    "header cut": (
        "single",
        cut(SINGLE, end=700),
        rf"{SINGLE} is cut short: it has 700 bytes, and its list",
    ),
    "nothing in it": ("single", cut(SINGLE, end=0), rf"{SINGLE} does not begin as a safetensors"),
    "garbage": ("single", garbage(SINGLE), rf"{SINGLE} does not begin as a safetensors file does"),
    "header garbage": (
        "single",
        lambda folder: (folder / SINGLE).write_bytes(struct.pack("<Q", 40) + b"x" * 999),
        rf"{SINGLE} is damaged in its list of tensors; copy it again",
    ),
    "offsets": (
        "single",
        header(lambda values: values[QUERY].update(data_offsets=[0, 12])),
        rf"{SINGLE} is damaged where it describes {QUERY}; copy it again",
    ),
    "entry": (
        "single",
        header(lambda values: values.update({QUERY: 3})),
        rf"{SINGLE} is damaged where it describes {QUERY}; copy it again",
    ),
    "unknown dtype": (
        "single",
        header(lambda values: values[QUERY].update(dtype="F4")),
        rf"{SINGLE} holds {QUERY} as F4, which is unsupported; give weights of the dtypes F64",
    ),
    "shape": (
        "single",
        safely(**{QUERY: NARROW}),
        rf"{SINGLE} has {QUERY} with the shape \(32, 16\), and the model's is \(32, 32\); give",
    ),
    "missing": ("single", safely(**{QUERY: None}), f"has no {QUERY}, which its config asks for"),
    "integers": (
        "single",
        safely(**{QUERY: torch.zeros(32, 32, dtype=torch.int32)}),
        rf"{SINGLE} holds {QUERY} as int32, and weights are float32, float16",
    ),
    "8 bits": (
        "single",
        safely(**{QUERY: torch.zeros(32, 32, dtype=torch.float8_e4m3fn)}),
        rf"{SINGLE} holds {QUERY} as float8_e4m3fn, .*; give a model that is not quantised",
    ),
    "untied": (
        "single",
        safely(**{"lm_head.decoder.weight": torch.zeros(128, 32)}),
        rf"{SINGLE} has other numbers in lm_head.decoder.weight than in {WORDS}, and the two",
    ),
    "tied to another shape": (
        "single",
        safely(**{"lm_head.decoder.bias": torch.zeros(12)}),
        rf"{SINGLE} has lm_head.decoder.bias with the shape \(12,\), and lm_head.bias, which it",
    ),
    "another model": (
        "single",
        lambda folder: save_file(unnamed_model(), folder / SINGLE),
        r"has no weights of this model, such as \S+; what it has begins with bert\.",
    ),
    "no weights": ("single", lambda folder: (folder / SINGLE).unlink(), "has none of them: the we"),
    "a shard is lost": (
        "shards",
        lose_a_shard,
        r"index.json says that \S+ is in model-00002-of-00005.safetensors, and no such file is",
    ),
    "a shard lacks a tensor": (
        "shards",
        lose_a_tensor,
        rf"model-0000\d-of-00005.safetensors has no {QUERY}, and the index beside it lists it",
    ),
    "the index names a place": (
        "shards",
        index(lambda listed: listed.update({QUERY: f"../{SINGLE}"})),
        rf"index.json says that {QUERY} is in \.\./{SINGLE}, and no such file is beside it",
    ),
    "no index": (
        "shards",
        garbage(f"{SINGLE}.index.json"),
        r"index.json is not an index of weights; copy it again",
    ),
    "bin cut": ("bin", cut(BIN, end=-100), f"{BIN} is cut short, or damaged; copy it again"),
    "bin garbage": ("bin", garbage(BIN), f"{BIN} is .*damaged; copy it again"),
    "bin with code": (
        "bin",
        torch_file(lambda: state() | {QUERY: Code()}),
        rf"{BIN} names posix.system, which may be code, and only plain tensors are read",
    ),
    "bin with a module": (
        "bin",
        torch_file(lambda: torch.nn.Linear(2, 2)),
        rf"{BIN} names torch.nn.modules.linear.Linear, which may be code",
    ),
    "plain pickle with code": (
        "bin",
        lambda folder: (folder / BIN).write_bytes(pickle.dumps({QUERY: Code()}, protocol=2)),
        f"{BIN} .*(is not a file of torch.save, or is damaged|names posix.system)",
    ),
    "bin of something else": (
        "bin",
        torch_file(lambda: state() | {QUERY: 3}),
        rf"{BIN} holds {QUERY}, of the type int, and a file of weights holds only tensors",
    ),
    "bin of a list": ("bin", torch_file(lambda: [1]), rf"{BIN} holds one list in place of weights"),
    "bin of another shape": (
        "bin",
        torch_file(lambda: changed(**{QUERY: NARROW})),
        rf"{BIN} has {QUERY} with the shape \(32, 16\), and the model's is \(32, 32\)",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folder_raises_one_sentence(name, tmp_path):
    form, damage, said = DAMAGES[name]
    folder = model_folder(tmp_path, form)
    mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder)
    damage(folder)
    with pytest.raises(DataError) as found:
        mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder)
    text = str(found.value)
    assert re.search(said, text), text
    assert str(folder) in text
    assert "\n" not in text
    assert "; " in text


def test_file_cut_while_it_is_read_is_reported(tmp_path):
    weights = open_weights(model_folder(tmp_path))
    os.truncate(tmp_path / SINGLE, 20_000)
    last = list(weights.shapes)[-1]
    with pytest.raises(DataError, match=rf"{SINGLE} ends in the middle of {last}; copy it again"):
        weights.read(last)


def test_bin_file_cut_anywhere_is_damaged(tmp_path):
    """And never one that a user may not read."""
    path = model_folder(tmp_path, "bin") / BIN
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"{BIN} is .*damaged; copy it again"):
            open_weights(tmp_path)


def test_unusual_but_whole_folder_is_read(tmp_path):
    folder = model_folder(tmp_path)
    odd = torch.full((32, 32), float("nan"))
    odd[0, 0] = float("inf")
    held = changed(**{QUERY: odd}) | {
        "lm_head.decoder.weight": state()[WORDS].clone(),
        "roberta.embeddings.position_ids": torch.arange(22)[None],
    }
    save_file(held, folder / SINGLE)
    model = mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder)
    assert torch.equal(model.get_parameter(QUERY).isnan(), odd.isnan())
    del held[WORDS], held["lm_head.bias"]
    held["lm_head.decoder.bias"] = torch.ones(128)
    save_file(held, folder / SINGLE)
    model = mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder)
    assert torch.equal(model.get_input_embeddings().weight, state()[WORDS])
    assert model.lm_head.bias.eq(1).all()


def test_old_bin_file_is_read_with_a_warning(tmp_path):
    folder = model_folder(tmp_path, "bin")
    torch.save(state(), folder / BIN, _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=rf"{BIN} is in the format of torch before 1.6, so all"):
        model = mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder)
    assert all(torch.equal(model.get_parameter(name), held) for name, held in state().items())


@pytest.mark.parametrize("form", ["single", "bin"])
def test_bin_file_reads_slices_of_a_tensor(form, tmp_path):
    weights = open_weights(model_folder(tmp_path, form))
    assert weights.shapes.keys() == state().keys()
    for name in (WORDS, QUERY, "lm_head.bias"):
        for dim in range(len(weights.shapes[name])):
            found = weights.part(name, dim, 3, 11)
            assert torch.equal(found, state()[name].narrow(dim, 3, 8))
            assert found.is_contiguous()
    with pytest.raises(DataError, match=r"has no classifier.bias; give a model that has this"):
        weights.read("classifier.bias")


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "bert"}', '{"hidden_size": "x"}'])
def test_config_file_that_is_no_object_is_damaged(text, tmp_path):
    (model_folder(tmp_path) / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is damaged|model_type='bert'|hidden_size="):
        mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
