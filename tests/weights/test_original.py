"""Checkpoints of the original code, whole and split, read under the published names."""

import argparse
import os
from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf

import mlm
from mlm.errors import DataError
from mlm.weights.load import full_shapes, load_parameters, match
from mlm.weights.original import open_original
from tests.family.family_fixtures import TINY, same, tokens
from tests.original_checkpoints import ARGS, change, their_models, write


def loaded(original) -> torch.nn.Module:
    config = mlm.XLMRobertaXLConfig.from_dict(original.config)
    model = getattr(mlm, original.head)(config)
    shapes = full_shapes(model)
    found = match(shapes, original.weights)
    assert (found.missing, found.unused, found.mismatched) == ([], [], {})
    load_parameters(model, original.weights, found.stored)
    return model.eval()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_original_gives_the_logits_of_transformers(parts, tmp_path):
    first, ids = write(tmp_path, parts), tokens()
    for path in (tmp_path, first, tmp_path / "model.pt"):
        for head, theirs in zip((None, "mnli"), their_models(), strict=True):
            original = open_original(path, head)
            assert original.head == type(theirs).__name__
            with torch.no_grad():
                same(loaded(original)(ids).logits, theirs(ids).logits)
    config = open_original(first, "mnli").config
    assert config["num_labels"] == 3
    assert config["classifier_dropout"] == 0.5
    (note,) = open_original(first).notes
    assert "has classification heads (mnli), which are skipped; name one to import" in note
    for name in ("vocab_size", "num_attention_heads", "max_position_embeddings"):
        assert config[name] == TINY[name]
    assert config["hidden_dropout_prob"] == 0.25
    assert config["attention_probs_dropout_prob"] == 0.125


@pytest.mark.parametrize("parts", [2, 4])
def test_original_joins_parts_when_they_are_read(parts, tmp_path):
    for number in (1, parts):
        (tmp_path / str(number)).mkdir()
    whole = open_original(write(tmp_path / "1", 1)).weights
    split = open_original(write(tmp_path / str(parts), parts)).weights
    assert split.shapes == whole.shapes
    for name, shape in whole.shapes.items():
        for dim, size in enumerate(shape):
            for start in range(0, size, 5):
                stop = min(size, start + 19)
                found = split.part(name, dim, start, stop)
                assert torch.equal(found, whole.part(name, dim, start, stop)), name


def test_original_reads_settings_of_newer_code(tmp_path):
    plain = {key: value for key, value in ARGS.items() if key != "data"}
    for model in (argparse.Namespace(**ARGS), dict(ARGS)):
        for cfg in ({"model": model}, OmegaConf.create({"model": plain})):
            path = change(tmp_path, lambda values, cfg=cfg: values.update(args=None, cfg=cfg))
            assert open_original(path).config["hidden_dropout_prob"] == 0.25
    path = change(tmp_path, lambda values: values.update(args=None))
    with pytest.raises(DataError, match=r"has encoder_attention_heads=None and a hidden size of 3"):
        open_original(path)


def test_original_reads_decoder_names_and_other_file_names(tmp_path):
    def rename(values: dict) -> None:
        values["model"] = {
            name.replace("encoder.", "decoder.", 1): each for name, each in values["model"].items()
        }

    expected = open_original(write(tmp_path, 1)).weights
    path = change(tmp_path, rename).rename(tmp_path / "checkpoint_best.pt")
    for place in (path, tmp_path):
        found = open_original(place).weights
        assert found.shapes == expected.shapes
        assert all(torch.equal(found.read(name), expected.read(name)) for name in found.shapes)
    write(tmp_path, 2, "checkpoint_last")
    assert len(open_original(tmp_path / "checkpoint_last.pt").weights.shapes) == len(found.shapes)
    with pytest.raises(DataError, match=r"has checkpoint_best.pt, checkpoint_last.pt; give such"):
        open_original(tmp_path)


@pytest.mark.parametrize("version", [None, 1.0])
def test_original_keeps_the_final_norm(version, tmp_path):
    def set_version(values: dict) -> None:
        del values["model"]["encoder.sentence_encoder.version"]
        if version is not None:
            values["model"]["encoder.sentence_encoder.version"] = torch.tensor([version])

    original = open_original(change(tmp_path, set_version))
    assert "silently skips the final layer norm; the norm is in the file" in original.notes[0]
    expected = their_models()[0].get_parameter("roberta.encoder.LayerNorm.weight")
    assert torch.equal(original.weights.read("roberta.encoder.LayerNorm.weight"), expected)


def test_original_checks_the_activation(tmp_path):
    def act(name: str) -> Callable[[dict], None]:
        return lambda values: setattr(values["args"], "activation_fn", name)

    for name, ours in {"gelu_accurate": "gelu_new", "relu": "relu", "swish": "silu"}.items():
        path = change(tmp_path, act(name))
        assert open_original(path, "mnli").config["hidden_act"] == ours
        with pytest.raises(DataError, match=f"activation_fn={name}, also in the language"):
            open_original(path)
    with pytest.raises(DataError, match=r"activation_fn=tanh, and gelu, .* are supported; give"):
        open_original(change(tmp_path, act("tanh")))
    path = change(tmp_path, lambda values: setattr(values["args"], "activation_dropout", 0.1))
    assert "trained with activation_dropout=0.1, which models" in open_original(path).notes[0]


class Code:
    def __reduce__(self):
        return os.system, ("false",)


def model(do: Callable[[dict], object]) -> Callable[[dict], None]:
    return lambda values: (do(values["model"]), None)[1]


def setting(name: str, value: object) -> Callable[[dict], None]:
    return lambda values: setattr(values["args"], name, value)


NORM = "encoder.sentence_encoder.layer_norm.weight"
FC1 = "encoder.sentence_encoder.layers.1.fc1.weight"
FC2 = "encoder.sentence_encoder.layers.1.fc2.weight"
DAMAGES = {
    "a tensor is missing": (
        model(lambda held: held.pop(FC1)),
        r"model.pt has no tensor for roberta.encoder.layer.1.intermediate.dense.weight; give a wh",
    ),
    "no final norm": (
        model(lambda held: held.pop(NORM)),
        r"model.pt has no tensor for roberta.encoder.LayerNorm.weight",
    ),
    "another architecture": (
        model(lambda held: held.update({NORM.replace("layer", "emb_layer"): held[NORM]})),
        r"model.pt has sentence_encoder.emb_layer_norm.weight, which models of the type xlm-rob",
    ),
    "no encoder": (
        lambda values: values.update(model={"roberta.pooler.dense.bias": torch.zeros(3)}),
        r"model.pt has no encoder.sentence_encoder, but tensors such as roberta.pooler",
    ),
    "shapes": (
        model(lambda held: held.update({FC2: torch.zeros(32, 48)})),
        r"model.pt has sentence_encoder.layers.1.fc2.weight with the shape \(32, 48\), and the oth",
    ),
    "no model": (lambda values: values.pop("model"), r"model.pt has no tensors under `model`"),
    "code": (lambda values: values.update(more=Code()), r"model.pt names posix.system, which may"),
    "post-norm": (
        setting("encoder_normalize_before", False),
        r"trained with encoder_normalize_before=False, and a model of .* has True there; give a",
    ),
    "untied": (setting("untie_weights_roberta", True), "trained with untie_weights_roberta=True"),
    "another size": (
        setting("encoder_layers", 4),
        "trained with encoder_layers=4, and its tensors have 3; copy the checkpoint again",
    ),
    "fsdp": (lambda values: values.update(fsdp_metadata={}), r"model.pt is a shard of data-par"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_original_reports_damage_in_one_sentence(name, tmp_path):
    damage, message = DAMAGES[name]
    with pytest.raises(DataError, match=message) as found:
        open_original(change(tmp_path, damage))
    assert str(tmp_path) in str(found.value)
    assert "\n" not in str(found.value)


PART_DAMAGES = {
    "another step": (
        lambda values: values["optimizer_history"][-1].update(num_updates=7),
        r"part-1.pt is of step 7, and .*part-0.pt of step 500000; give the parts of one",
    ),
    "another model's": (
        model(lambda held: held[NORM].neg_()),
        r"part-1.pt has another sentence_encoder.layer_norm.weight than .*part-0.pt, and every",
    ),
    "a tensor more": (
        model(lambda held: held.update({"encoder.more": torch.zeros(3)})),
        r"more is in only one of .*part-0.pt and .*part-1.pt; give",
    ),
    "another shape": (
        model(lambda held: held.update({FC1: held[FC1][:5].clone()})),
        r"part-1.pt has sentence_encoder.layers.1.fc1.weight with the shape \(5, 32\), and .*0.pt",
    ),
}


@pytest.mark.parametrize("name", PART_DAMAGES)
def test_original_refuses_parts_of_several_checkpoints(name, tmp_path):
    damage, message = PART_DAMAGES[name]
    path = change(tmp_path, damage, parts=2, which=1)
    with pytest.raises(DataError, match=message):
        loaded(open_original(path))


def test_original_refuses_missing_parts(tmp_path):
    first = write(tmp_path, 4)
    (tmp_path / "model-model_part-3.pt").unlink()
    with pytest.raises(
        DataError, match=r"0.pt is one of 4 parts, as its tensors show, and 3 are there"
    ):
        open_original(first)
    (tmp_path / "model-model_part-0.pt").unlink()
    with pytest.raises(
        DataError, match=r"1.pt is one of several parts, and the part of rank 0 is missing"
    ):
        open_original(tmp_path)
    with pytest.raises(
        DataError, match=r"gone is not a checkpoint of the original code, and .* no .pt"
    ):
        open_original(tmp_path / "gone" / "gone")
    with pytest.raises(DataError, match=r"model.pt has no classification head xnli; it has mnli"):
        open_original(write(tmp_path, 1), "xnli")
    cut = write(tmp_path, 1)
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"model.pt is cut short, or damaged; copy it again"):
        open_original(cut)


def test_original_refuses_an_untied_decoder(tmp_path):
    def untie(values: dict) -> None:
        values["model"]["encoder.lm_head.weight"] = torch.zeros(TINY["vocab_size"], 32)

    with pytest.raises(DataError, match=r"has other numbers in lm_head.decoder.weight than in"):
        loaded(open_original(change(tmp_path, untie)))
