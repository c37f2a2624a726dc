"""What `mlm import` refuses, without leaving any files."""

import json
import shutil
from typing import Any, cast

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2

from mlm.errors import DataError, UserError
from mlm.hf.export import export
from mlm.hf.importing import import_model
from mlm.tokenizer.ids import MODEL_FILE
from mlm.trained.fill import fill_masks
from mlm.trained.opening import open_trained
from mlm.weights import stored
from tests.published_folders import (
    MASKED,
    POSITIONS,
    QUERY,
    bin_folder,
    damaged,
    folder_of,
    left_nothing,
    model,
    same_tensors,
    tokenizer_in,
)
from tests.text_fixtures import tokenizer


def test_import_refuses_differing_copies_of_a_tied_weight(tmp_path):
    source = bin_folder(model(MASKED), tmp_path / "source")
    state = torch.load(source / "pytorch_model.bin")
    state["lm_head.decoder.bias"] = state["lm_head.decoder.bias"] + 1
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"other numbers in lm_head\.decoder\.bias than in lm_head"):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_import_refuses_copies_that_differ_at_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PART", 100)
    source = bin_folder(model(MASKED), tmp_path / "source")
    name = "lm_head.decoder.weight"
    state = torch.load(source / "pytorch_model.bin")
    state[name] = state[name].clone()
    state[name][-1, -1] += 1
    torch.save(state, source / "pytorch_model.bin")
    with pytest.raises(DataError, match=rf"has other numbers in {name} than in"):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_import_goes_without_a_tokenizer_only_on_request(tmp_path, capsys):
    source = folder_of(model(MASKED), tmp_path / "source", with_tokenizer=False)
    with pytest.raises(DataError, match=r"has no sentencepiece.bpe.model, .*add tokenizer=DIR"):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")
    import_model(str(source), str(tmp_path / "out"), "none")
    export(str(tmp_path / "out"), str(tmp_path / "exported"))
    printed = capsys.readouterr().out
    assert printed.count("random ids (there is no tokenizer)") == 2
    assert f"so there is no tokenizer in {tmp_path / 'exported'}" in printed
    assert not (tmp_path / "exported" / "tokenizer.json").exists()
    same_tensors(tmp_path / "exported", source)
    with pytest.raises(UserError, match=r"has no tokenizer .*, so a text cannot be read; put one"):
        fill_masks(tmp_path / "out", ["<mask>"], 3)
    import_model(str(source), str(tmp_path / "with"), str(tokenizer().model_path.parent))
    assert tokenizer_in(tmp_path / "with").hash == tokenizer().hash


def test_import_checks_a_given_tokenizer_against_the_folder(tmp_path, capsys):
    source = folder_of(model(MASKED), tmp_path / "source")
    shutil.copytree(tokenizer().model_path.parent, tmp_path / "other")
    other = cast(Any, sentencepiece_model_pb2).ModelProto.FromString(tokenizer().model)
    other.pieces[10].score, other.pieces[11].score = 0.0, -1.0
    (tmp_path / "other" / MODEL_FILE).write_bytes(other.SerializeToString())
    with pytest.raises(
        DataError, match=r"other gives other ids than .*source.*; remove this setting"
    ):
        import_model(str(source), str(tmp_path / "out"), str(tmp_path / "other"))
    assert left_nothing(tmp_path, "source", "other")
    (source / MODEL_FILE).write_bytes(b"damaged")
    import_model(str(source), str(tmp_path / "out"), str(tmp_path / "other"))
    assert tokenizer_in(tmp_path / "out").model == other.SerializeToString()


def test_import_refuses_a_tokenizer_of_another_model(tmp_path, capsys):
    small = folder_of(model(MASKED, vocab_size=384), tmp_path / "small")
    with pytest.raises(DataError, match=r"a vocab_size of 384, below the 400 ids of its tokenizer"):
        import_model(str(small), str(tmp_path / "out"))
    other = folder_of(model(MASKED, pad_token_id=3), tmp_path / "pad")
    with pytest.raises(DataError, match=r"has pad_token_id=3, and its tokenizer .* has 1"):
        import_model(str(other), str(tmp_path / "out"))
    added = folder_of(model(MASKED), tmp_path / "added")
    tokens = {"added_tokens": [{"id": 0, "content": "<s>"}, {"id": 400, "content": "<user>"}]}
    (added / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(DataError, match=r"such as '<user>' with the id 400.*add tokenizer="):
        import_model(str(added), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "small", "pad", "added")
    large = folder_of(model(MASKED, vocab_size=2048), tmp_path / "large")
    import_model(str(large), str(tmp_path / "out"))
    assert "2,048 embeddings and the tokenizer 400 ids: check that it" in capsys.readouterr().out


def test_open_trained_refuses_a_replaced_tokenizer(tmp_path):
    import_model(str(folder_of(model(MASKED), tmp_path / "source")), str(tmp_path / "out"))
    path = tmp_path / "out" / "tokenizer" / MODEL_FILE
    kept = path.read_bytes()
    path.write_bytes(kept + kept[:0] + b"\x1a\x00" * 2)  # two more empty pieces
    with pytest.raises(
        DataError, match=r"is not the tokenizer that was imported|is not a sentencepiece model"
    ):
        open_trained(tmp_path / "out")


def test_import_overwrites_nothing(tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists, and nothing is overwritten; choose another"):
        import_model(str(source), str(tmp_path / "out"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: .*; free some space"):
        import_model(str(source), str(tmp_path / "file" / "out"))
    assert left_nothing(tmp_path, "source", "out", "file")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda held: {name: t for name, t in held.items() if name != QUERY},
            rf"has no {QUERY}, which an {MASKED} of its config has",
        ),
        (
            lambda held: held | {"roberta.extra.weight": torch.zeros(3)},
            r"model.safetensors has roberta\.extra\.weight, which an .* of its config lacks",
        ),
        (
            lambda held: held | {QUERY: torch.zeros(16, 32)},
            rf"model.safetensors has {QUERY} with the shape \(16, 32\), and its config asks for "
            r"\(32, 32\)",
        ),
        (
            lambda held: held | {QUERY: torch.zeros(32, 32, dtype=torch.int8)},
            rf"model.safetensors holds {QUERY} as int8, and weights are float32",
        ),
    ],
    ids=["missing", "foreign", "shape", "integers"],
)
def test_import_refuses_other_weights_by_file_and_name(change, sentence, tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    damaged(source, change)
    with pytest.raises(DataError, match=sentence):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_import_refuses_cut_and_foreign_files(tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    path = source / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"model\.safetensors is cut short"):
        import_model(str(source), str(tmp_path / "out"))
    path.write_bytes(whole)
    values = json.loads((source / "config.json").read_text())
    for changes, sentence in (
        ({"model_type": "xlm-roberta"}, r"config\.json has model_type='xlm-roberta' is another"),
        ({"architectures": ["RobertaModel"]}, "names the class RobertaModel, which is not one of"),
        ({"num_attention_heads": 5}, "hidden_size=32 is not a multiple of num_attention_heads=5"),
    ):
        (source / "config.json").write_text(json.dumps(values | changes))
        with pytest.raises(DataError, match=sentence):
            import_model(str(source), str(tmp_path / "out"))
    with pytest.raises(UserError, match="missing"):
        import_model(str(tmp_path / "missing"), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        (QUERY, 0, r"gives logits that differ from those of .*source by up to [0-9.]+, and"),
        # No text of the comparison is that long.
        (
            "roberta.embeddings.position_embeddings.weight",
            65,
            r"differs from .*source in roberta\.",
        ),
    ],
    ids=["seen", "not seen"],
)
def test_import_finds_damage_during_writing_and_leaves_nothing(
    name, row, sentence, tmp_path, monkeypatch
):
    source = folder_of(model(MASKED), tmp_path / "source")
    write = stored.SaveTiles.resolve_data

    def wrong(self, item):
        made = write(self, item)
        if item.index.fqn == f"weight/{name}":
            made[row] += 0.5
        return made

    monkeypatch.setattr(stored.SaveTiles, "resolve_data", wrong)
    with pytest.raises(UserError, match=sentence):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_import_compares_large_weights_to_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PART", 100)
    source = folder_of(model(MASKED), tmp_path / "source")
    right = stored.SaveTiles.resolve_data

    def wrong(self, item):
        made = right(self, item)
        if item.index.fqn.endswith(POSITIONS) and item.tensor_data.chunk.offsets[0] >= 63:
            made[-1] += 0.5
        return made

    monkeypatch.setattr(stored.SaveTiles, "resolve_data", wrong)
    with pytest.raises(UserError, match=rf"differs from .*source in {POSITIONS}"):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_import_refuses_weights_that_do_not_fit_the_config(tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    damaged(source, lambda held: {name: each for name, each in held.items() if name != QUERY})
    with pytest.raises(DataError, match=f"source has no {QUERY}, which an {MASKED} of its config"):
        open_trained(source)


def test_import_leaves_nothing_on_a_full_disk(tmp_path, monkeypatch):
    source = folder_of(model(MASKED), tmp_path / "source")

    def full(self, item):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(stored.SaveTiles, "resolve_data", full)
        with pytest.raises(UserError, match="out cannot be written: No space left on device; free"):
            import_model(str(source), str(tmp_path / "out"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs 0\.0 GB .* and 0\.0 GB are free there"):
        import_model(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_original_refuses_a_folder_without_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.safetensors").touch()
    for name, sentence in (
        (
            "empty",
            r"empty has neither config\.json nor a \.pt file; give a Hugging Face folder",
        ),
        (
            "missing",
            "missing does not exist, and nothing is downloaded; give a Hugging Face folder",
        ),
        ("model.safetensors", "safetensors is one file of a Hugging Face folder; give the folder"),
    ):
        with pytest.raises(DataError, match=sentence):
            import_model(str(tmp_path / name), str(tmp_path / "out"), "none")
    (tmp_path / "model.safetensors").unlink()
    source = folder_of(model(MASKED), tmp_path / "source")
    with pytest.raises(UserError, match="head=mnli names a head of an original checkpoint, and"):
        import_model(str(source), str(tmp_path / "out"), None, "mnli")
    assert left_nothing(tmp_path, "empty", "source")


def test_import_refuses_a_config_that_does_not_fit_the_class(tmp_path):
    source = folder_of(model("XLMRobertaXLForQuestionAnswering"), tmp_path / "source")
    values = json.loads((source / "config.json").read_text("utf-8"))
    values["id2label"] = {"0": "a", "1": "b", "2": "c"}
    (source / "config.json").write_text(json.dumps(values | {"label2id": None}), "utf-8")
    with pytest.raises(DataError, match="num_labels=3 does not fit question answering"):
        import_model(str(source), str(tmp_path / "out"), "none")
    assert left_nothing(tmp_path, "source")
