"""Folders of weights, read and written: against transformers, in every form, whole and damaged."""

import json
import warnings
from dataclasses import asdict
from dataclasses import fields as fields_of
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import mlm
from mlm import checkpoint
from mlm.checkpoint.folder import write_manifest
from mlm.config import TrainConfig
from mlm.errors import DataError, UserError
from mlm.family import saving
from mlm.family.folder import config_values
from mlm.files.hashes import sha256
from mlm.model.config import ModelConfig
from mlm.weights import stored
from mlm.weights.source import open_weights
from tests.family.family_fixtures import TINY, our_model, pair, their_model

HEADS = {
    "XLMRobertaXLModel": {},
    "XLMRobertaXLForMaskedLM": {},
    "XLMRobertaXLForCausalLM": {"is_decoder": True},
    "XLMRobertaXLForSequenceClassification": {"num_labels": 3},
    "XLMRobertaXLForMultipleChoice": {},
    "XLMRobertaXLForTokenClassification": {"num_labels": 5},
    "XLMRobertaXLForQuestionAnswering": {},
}
BARE, MASKED = "XLMRobertaXLModel", "XLMRobertaXLForMaskedLM"
SEQUENCES = "XLMRobertaXLForSequenceClassification"
FIFTH = 30_000  # bytes of a file, so that there are five


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8))
        for name in one
    )


def write_bins(model: nn.Module, folder: Path, files: int = 1) -> None:
    """As transformers 4 wrote them: all of the state, tied weights twice, and an old buffer."""
    state = dict(model.state_dict()) | {"roberta.embeddings.position_ids": torch.arange(22)[None]}
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = list(state)
    shards = {
        f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin": names[number::files]
        for number in range(files)
    }
    for file, held in shards.items():
        torch.save({name: state[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def write_theirs(theirs: Any, folder: Path, form: str) -> Path:
    if form == "shards":
        theirs.save_pretrained(folder, max_shard_size=FIFTH)
        assert len(list(folder.glob("*.safetensors"))) > 2
        return folder
    theirs.save_pretrained(folder)
    if form.startswith("bin"):
        (folder / "model.safetensors").unlink()
        write_bins(theirs, folder, 3 if form == "bins" else 1)
    return folder


@cache
def original(name: str = MASKED) -> Any:
    return pair(name, **HEADS[name])[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A masked language model of transformers in one file."""
    return write_theirs(original(), tmp_path / "model", "single")


@pytest.mark.parametrize("form", ["single", "shards", "bin", "bins"])
@pytest.mark.parametrize("name", HEADS)
def test_from_pretrained_reads_folders_of_transformers(name, form, tmp_path):
    theirs = original(name)
    write_theirs(theirs, tmp_path, form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = getattr(mlm, name).from_pretrained(tmp_path)
    assert equal(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert not ours.training
    assert not any(parameter.is_meta for parameter in ours.parameters())
    if name.endswith("LM"):
        assert ours.lm_head.decoder.weight is ours.get_input_embeddings().weight
        assert ours.lm_head.decoder.bias is ours.lm_head.bias


@pytest.mark.parametrize("form", ["single", "shards"])
@pytest.mark.parametrize("name", HEADS)
def test_save_pretrained_is_read_by_transformers(name, form, tmp_path):
    ours, theirs = pair(name, **HEADS[name])
    ours.save_pretrained(tmp_path / "ours", max_shard_size=FIFTH if form == "shards" else "5GB")
    theirs.save_pretrained(tmp_path / "theirs")
    assert equal(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    found, said = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", output_loading_info=True, local_files_only=True
    )
    assert not any(said.values()), said
    assert equal(dict(found.state_dict()), dict(theirs.state_dict()))
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [name]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    kept = mlm.XLMRobertaXLConfig.from_pretrained(tmp_path / "ours")
    assert kept.num_labels == ours.config.num_labels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_from_pretrained_converts_dtypes(dtype, tmp_path):
    theirs = their_model(MASKED).to(dtype)
    write_theirs(theirs, tmp_path / "theirs", "shards")
    state = dict(theirs.state_dict())
    kind = mlm.XLMRobertaXLForMaskedLM
    assert kind.from_pretrained(tmp_path / "theirs").dtype == torch.float32
    for given in ("auto", dtype, str(dtype)):
        ours = kind.from_pretrained(tmp_path / "theirs", torch_dtype=given)
        assert equal(dict(ours.state_dict()), state)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="20KB")
    assert equal(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    assert kind.from_pretrained(tmp_path / "ours", dtype="auto").dtype == dtype
    with pytest.raises(
        ValueError, match=r"dtype=torch.int8 is unsupported; choose from auto, float32"
    ):
        kind.from_pretrained(tmp_path / "ours", dtype="int8")


def test_from_pretrained_reads_folders_of_other_heads(tmp_path):
    write_theirs(original(MASKED), tmp_path / "masked", "single")
    write_theirs(original(BARE), tmp_path / "bare", "single")
    said = (
        r"masked has no pooler.dense.weight, pooler.dense.bias for XLMRobertaXLModel, which must "
        r"be trained before it is used, and has lm_head.bias, .* and 1 more, which "
        r"XLMRobertaXLModel does not use$"
    )
    with pytest.warns(UserWarning, match=said):
        bare = mlm.XLMRobertaXLModel.from_pretrained(tmp_path / "masked", seed=3)
    whole = original(MASKED).roberta.state_dict()
    held = bare.state_dict()
    assert all(torch.equal(held[name], whole[name]) for name in whole)
    assert 0.15 < held["pooler.dense.weight"].std() < 0.25
    assert not held["pooler.dense.bias"].any()
    with pytest.warns(UserWarning, match=r"masked has lm_head.bias, .* does not use$"):
        mlm.XLMRobertaXLModel.from_pretrained(tmp_path / "masked", add_pooling_layer=False)
    with pytest.warns(UserWarning, match="has pooler.dense.bias, .* does not use"):
        made, info = mlm.XLMRobertaXLForSequenceClassification.from_pretrained(
            tmp_path / "bare", num_labels=4, output_loading_info=True, seed=3
        )
    assert info["missing_keys"] == [
        f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("weight", "bias")
    ]
    assert info["unexpected_keys"] == ["pooler.dense.bias", "pooler.dense.weight"]
    held, whole = made.roberta.state_dict(), original(BARE).state_dict()
    assert all(torch.equal(held[name], whole[name]) for name in held)
    fresh = our_model(SEQUENCES, init={"seed": 3}, num_labels=4)
    assert torch.equal(made.classifier.dense.weight, fresh.classifier.dense.weight)
    with pytest.warns(UserWarning, match=r"bare has no lm_head.bias"):
        language = mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "bare")
    assert language.lm_head.decoder.weight is language.roberta.embeddings.word_embeddings.weight


def test_from_pretrained_takes_config_changes(tmp_path):
    kind = mlm.XLMRobertaXLForSequenceClassification
    write_theirs(original(SEQUENCES), tmp_path, "single")
    said = (
        r"model.safetensors has classifier.out_proj.weight with the shape \(3, 32\), and the "
        r"model's is \(2, 32\); give a config that fits, or ignore_mismatched_sizes=True"
    )
    with pytest.raises(DataError, match=said):
        kind.from_pretrained(tmp_path, num_labels=2)
    with pytest.warns(UserWarning, match=r"has no classifier.out_proj.weight, .*bias for"):
        made, info = kind.from_pretrained(
            tmp_path, num_labels=2, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert info["mismatched_keys"] == ["classifier.out_proj.weight", "classifier.out_proj.bias"]
    assert made.classifier.out_proj.weight.shape == (2, 32)
    config = mlm.XLMRobertaXLConfig.from_pretrained(tmp_path)
    made = kind.from_pretrained(tmp_path, config=config, hidden_dropout_prob=0.3)
    assert made.config.hidden_dropout_prob == 0.3
    assert config.hidden_dropout_prob == 0.0
    with pytest.warns(UserWarning, match=r"layer.2.* does not use"):
        assert len(kind.from_pretrained(tmp_path, num_hidden_layers=2).roberta.encoder.layer) == 2
    with pytest.warns(UserWarning, match=r"has no roberta.encoder.layer.3"):
        kind.from_pretrained(tmp_path, num_hidden_layers=4)
    with pytest.warns(UserWarning, match=r"has no .*distance_embedding.weight"):
        kind.from_pretrained(tmp_path, position_embedding_type="relative_key")
    with pytest.raises(ValueError, match=r"hidden_dropout=0.1 is not a key"):
        kind.from_pretrained(tmp_path, hidden_dropout=0.1)
    with pytest.raises(ValueError, match="config is of the type dict; give a XLMRobertaXLConfig"):
        kind.from_pretrained(tmp_path, config={})


def test_from_pretrained_refuses_unsupported_options(folder):
    kind = mlm.XLMRobertaXLForMaskedLM
    for name, value in {"revision": "v2", "cache_dir": None, "state_dict": {}}.items():
        with pytest.raises(ValueError, match=rf"{name}=.* is not a key of the config; "):
            kind.from_pretrained(folder, **{name: value})
    with pytest.raises(ValueError, match=r"quantization_config=.* is unsupported; leave it out"):
        kind.from_pretrained(folder, quantization_config={"load_in_8bit": True})
    kind.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=True)
    with pytest.raises(ValueError, match="attn_implementation='flash_attention_2' is unsupported"):
        kind.from_pretrained(folder, attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match=r"device_map='balanced' is unsupported: .*; give auto"):
        kind.from_pretrained(folder, device_map="balanced")
    made = kind.from_pretrained(folder, attn_implementation="eager", device_map="auto")
    assert made.roberta.encoder.layer[0].attention.self.kernel == "unfused"
    for name, value in {"safe_serialization": False, "push_to_hub": True}.items():
        with pytest.raises(ValueError, match=f"{name}={value} is unsupported by save_pretrained; "):
            made.save_pretrained(folder, **{name: value})
    with pytest.raises(ValueError, match="max_shard_size='big' is no number of bytes; give one"):
        made.save_pretrained(folder, max_shard_size="big")


def test_from_pretrained_downloads_nothing(folder):
    with pytest.raises(UserError, match="xlm-roberta-xl is no folder here, and nothing is downl"):
        mlm.XLMRobertaXLForMaskedLM.from_pretrained("facebook/xlm-roberta-xl")
    with pytest.raises(UserError, match=r"model.safetensors is a file, .* give the folder"):
        mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder / "model.safetensors")


def test_from_pretrained_reads_runs_and_imports(folder, tmp_path):
    values = asdict(TrainConfig())
    names = {field.name for field in fields_of(ModelConfig)}
    values["model"] = {name: value for name, value in TINY.items() if name in names}
    values["data"] |= {"shards": "elsewhere", "seq_len": 16}
    state = dict(original().state_dict())
    for run, config in (("run", values), ("import", None)):
        step = tmp_path / run / "checkpoints" / "step-00000001"
        step.mkdir(parents=True)
        stored.write_checkpoint(open_weights(folder), step)
        imported = checkpoint.Imported("", MASKED, config_values(folder), "float32", {}, None)
        manifest = checkpoint.Manifest(1, 8, "", config or {}, None, None if config else imported)
        files = {each.name: (each.stat().st_size, sha256(each)) for each in step.iterdir()}
        write_manifest(step, manifest, files)
        for path in (tmp_path / run, step):
            made = mlm.XLMRobertaXLForMaskedLM.from_pretrained(path)
            assert equal(dict(made.state_dict()), state)
    part = next(step.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{part} is damaged"):
        mlm.XLMRobertaXLForMaskedLM.from_pretrained(step)
    part.parent.joinpath("checkpoint.json").unlink()
    with pytest.raises(DataError, match=r"import/config.json cannot be read \(No such file"):
        mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "import")


def test_save_pretrained_replaces_a_folder_as_a_whole(folder, monkeypatch):
    (folder / "sentencepiece.bpe.model").write_text("kept")
    before = tensors(folder)
    ours = our_model(MASKED)
    write = saving.write_weights

    def full(*given):
        write(*given)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_weights", full)
    names = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some"):
        ours.save_pretrained(folder)
    with pytest.raises(UserError, match="cannot be written: No space left on device; free some"):
        ours.save_pretrained(folder.parent / "new")
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}
    assert equal(tensors(folder), before)
    monkeypatch.setattr(saving, "write_weights", write)
    for size in (FIFTH, "5GB", FIFTH):
        ours.save_pretrained(folder, max_shard_size=size)
        read = mlm.XLMRobertaXLForMaskedLM.from_pretrained(folder)
        assert equal(dict(read.state_dict()), dict(ours.state_dict()))
        assert (folder / "model.safetensors").exists() == (size == "5GB")
        assert (folder / "model.safetensors.index.json").exists() == (size == FIFTH)
    assert (folder / "sentencepiece.bpe.model").read_text() == "kept"
    with pytest.raises(UserError, match=r"config.json is a file; give a folder"):
        ours.save_pretrained(folder / "config.json")
    ours.save_pretrained(folder / "elsewhere", is_main_process=False)
    assert not (folder / "elsewhere").exists()
