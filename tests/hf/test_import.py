"""`mlm import` of folders of every head, and the way back by `mlm export`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import mlm
import tests.original_checkpoints as original
from mlm import checkpoint
from mlm.errors import DataError, UserError
from mlm.family.heads import HEADS as TABLE
from mlm.hf import check
from mlm.hf.export import export
from mlm.hf.ids import sample_of
from mlm.hf.importing import import_model
from mlm.tokenizer.ids import MODEL_FILE
from mlm.trained.fill import fill_masks
from mlm.trained.opening import open_trained
from tests.published_folders import (
    HEADS,
    MASKED,
    QUERY,
    bin_folder,
    damaged,
    folder_of,
    left_nothing,
    model,
    same_tensors,
    tensors,
    tokenizer_in,
)
from tests.state_reading import newest_checkpoint
from tests.text_fixtures import tokenizer


def round_trip(source: Path, capsys) -> str:
    """Imports a folder and exports the import to a folder next to it; what was printed."""
    import_model(str(source), str(source.parent / "imported"))
    export(str(source.parent / "imported"), str(source.parent / "exported"))
    return capsys.readouterr().out


@pytest.mark.parametrize("head", HEADS)
def test_round_trip_keeps_every_head(head, tmp_path, capsys):
    theirs = model(head)
    source = folder_of(theirs, tmp_path / "source")
    printed = round_trip(source, capsys)
    assert printed.count("and all weights are equal") == 2
    assert printed.count("in transformers 5") == 2
    same_tensors(tmp_path / "exported", source)
    imported = open_trained(tmp_path / "imported")
    assert imported.head == head
    assert tokenizer_in(tmp_path / "imported").hash == tokenizer().hash
    before, after = (
        transformers.XLMRobertaXLConfig.from_pretrained(tmp_path / name).to_dict()
        for name in ("source", "exported")
    )
    set_ones = {key: value for key, value in before.items() if value is not None}
    assert {key: after.get(key) for key in set_ones} == set_ones
    # The same outputs as those of the saved model, which the checks did not use.
    sample = sample_of(tokenizer(), imported.config)
    ours = check.model_outputs(head, imported.model(), sample)
    expected = check.model_outputs(head, theirs, sample)
    assert check._difference(ours, expected, sample) <= 2e-5
    assert expected.std() > 0.01
    again, report = getattr(transformers, head).from_pretrained(
        tmp_path / "exported", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    found = check.model_outputs(head, again.eval(), sample)
    assert check._difference(found, expected, sample) <= 2e-5


@pytest.mark.parametrize("head", HEADS)
def test_card_has_working_code(head, tmp_path, monkeypatch):
    """Its example runs."""
    export(str(folder_of(model(head), tmp_path / "source")), str(tmp_path / "exported"))
    card = (tmp_path / "exported" / "README.md").read_text()
    kind = TABLE[head].card
    assert (f"pipeline_tag: {kind.task}\n" in card) == (kind.task is not None)
    assert ("| 1 | wild |" in card) == (head == "XLMRobertaXLForSequenceClassification")
    monkeypatch.chdir(tmp_path)
    held: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], held)
    assert type(held["model"]).__name__ == head
    held["model"].save_pretrained(tmp_path / "again")
    same_tensors(tmp_path / "again", tmp_path / "source")
    assert ("run" in held) == bool(kind.call)
    assert not kind.call or held["run"].task == kind.task
    assert ("outputs" in held) == (head == "XLMRobertaXLForQuestionAnswering")


def test_card_shows_the_labels_of_tokens_and_a_question_with_its_text(tmp_path):
    cards = []
    for head in ("XLMRobertaXLForTokenClassification", "XLMRobertaXLForQuestionAnswering"):
        export(str(folder_of(model(head), tmp_path / f"{head}-source")), str(tmp_path / head))
        cards.append((tmp_path / head / "README.md").read_text())
    assert ["## Labels" in card for card in cards] == [True, False]
    assert "tokenizer('What is wide?', 'The river is wide.', return_tensors" in cards[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_of_five_shards_is_bit_equal(dtype, tmp_path, capsys):
    size = "38KB" if dtype == torch.float32 else "21KB"
    source = folder_of(model(MASKED, dtype), tmp_path / "source", size)
    assert len(list(source.glob("model-*-of-00005.safetensors"))) == 5
    round_trip(source, capsys)
    same_tensors(tmp_path / "exported", source)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    manifest = checkpoint.read_manifest(newest_checkpoint(tmp_path / "imported"))
    assert manifest.imported is not None
    assert (manifest.step, manifest.imported.dtype) == (0, config["dtype"])


@pytest.mark.parametrize("head", HEADS)
def test_head_of_recognises_a_class_by_its_weights(head, tmp_path):
    source = folder_of(model(head), tmp_path / "source")
    values = json.loads((source / "config.json").read_text())
    del values["architectures"]
    (source / "config.json").write_text(json.dumps(values))
    assert open_trained(source).head == head


def test_import_takes_the_tokenizer_from_tokenizer_json_alone(tmp_path, capsys):
    """As transformers 5 saves one."""
    source = folder_of(model(MASKED), tmp_path / "source", with_tokenizer=False)
    export(str(folder_of(model(MASKED), tmp_path / "full")), str(tmp_path / "exported"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    shutil.rmtree(tmp_path / "exported")
    theirs.model_max_length = 40
    theirs.save_pretrained(source)
    assert not (source / MODEL_FILE).exists()
    round_trip(source, capsys)
    for name in ("source", "imported", "exported"):
        found = open_trained(tmp_path / name)
        assert tokenizer_in(tmp_path / name).same_ids(tokenizer())
        assert found.text_tokens == 40
        filled = fill_masks(tmp_path / name, ["one <mask> two"], 3)
        assert filled == fill_masks(tmp_path / "full", ["one <mask> two"], 3)
    text = "one two three"
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert (again(text)["input_ids"], again.model_max_length) == (theirs(text)["input_ids"], 40)
    # The sentencepiece model, given with a tokenizer.json, is the same tokenizer.
    import_model(str(source), str(tmp_path / "given"), str(tokenizer().model_path.parent))
    assert tokenizer_in(tmp_path / "given").hash == tokenizer().hash


def test_import_keeps_a_bare_model_without_pooler(tmp_path, capsys):
    config = open_trained(folder_of(model(HEADS[0]), tmp_path / "with")).config
    mlm.XLMRobertaXLModel(config, False, seed=1).save_pretrained(tmp_path / "source")
    shutil.copy(tokenizer().model_path, tmp_path / "source")
    assert round_trip(tmp_path / "source", capsys).count("in transformers 5") == 2
    same_tensors(tmp_path / "exported", tmp_path / "source")


def test_import_rounds_double_precision(tmp_path, capsys):
    source = folder_of(model(MASKED, torch.float64), tmp_path / "source")
    round_trip(source, capsys)
    rounded = {name: tensor.float() for name, tensor in tensors(source).items()}
    found = tensors(tmp_path / "exported")
    assert all(torch.equal(found[name], tensor) for name, tensor in rounded.items())
    assert found[QUERY].dtype == torch.float32


def test_round_trip_keeps_several_dtypes(tmp_path, capsys):
    theirs = model(MASKED, torch.bfloat16)
    for name, parameter in theirs.named_parameters():
        if "norm" in name.lower():
            parameter.data = parameter.data.float() + 1e-5
    source = folder_of(theirs, tmp_path / "source")
    assert len({tensor.dtype for tensor in tensors(source).values()}) == 2
    round_trip(source, capsys)
    same_tensors(tmp_path / "exported", source)


@pytest.mark.parametrize("shards", [1, 3])
def test_import_reads_torch_files(shards, tmp_path, capsys):
    theirs = model(MASKED)
    source = bin_folder(theirs, tmp_path / "source", shards)
    printed = round_trip(source, capsys)
    assert printed.count("in transformers 5") == 2
    same_tensors(tmp_path / "exported", folder_of(theirs, tmp_path / "expected"))


@pytest.mark.parametrize(
    "config",
    [
        {"position_embedding_type": "relative_key"},
        {"position_embedding_type": "relative_key_query", "is_decoder": True},
        {"pruned_heads": {0: [1, 2], 2: [3]}},
    ],
    ids=["relative_key", "relative_key_query", "pruned"],
)
def test_import_skips_transformers_where_it_is_wrong(config, tmp_path, capsys):
    made = mlm.XLMRobertaXLConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        initializer_range=0.2,
        **config,
    )
    ours = mlm.XLMRobertaXLForTokenClassification(made, seed=3).eval()
    ours.save_pretrained(tmp_path / "source")
    shutil.copy(tokenizer().model_path, tmp_path / "source" / MODEL_FILE)
    printed = round_trip(tmp_path / "source", capsys)
    name = next(iter(config))
    assert printed.count(f"was not compared: it ignores {name}") == 2
    same_tensors(tmp_path / "exported", tmp_path / "source")
    imported = open_trained(tmp_path / "imported")
    assert getattr(imported.config, name) == config[name]
    sample = sample_of(tokenizer(), imported.config)
    found, expected = (
        check.model_outputs(imported.head, each, sample) for each in (imported.model(), ours)
    )
    assert torch.equal(found, expected)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "from mlm import XLMRobertaXLForTokenClassification, AutoTokenizer" in card


def test_fill_takes_an_import(tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    import_model(str(source), str(tmp_path / "out"))
    ours, theirs = (fill_masks(path, ["kabu <mask>"], 3) for path in (tmp_path / "out", source))
    assert ours == theirs
    step = tmp_path / "out" / "checkpoints" / "step-00000000"
    assert fill_masks(step, ["kabu <mask>"], 3) == theirs
    with pytest.raises(UserError, match="is a run, a checkpoint or an import of this project al"):
        import_model(str(tmp_path / "out"), str(tmp_path / "again"))


def test_fill_refuses_other_heads(tmp_path):
    source = folder_of(model("XLMRobertaXLForQuestionAnswering"), tmp_path / "source")
    with pytest.raises(UserError, match=r"source holds an XLMRobertaXLForQuestionAnswering, and m"):
        fill_masks(source, ["<mask>"], 3)


def test_check_skips_transformers_where_memory_is_small(tmp_path, monkeypatch, capsys):
    source = folder_of(model(MASKED), tmp_path / "source")
    memory = check.psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(check.psutil, "virtual_memory", lambda: memory)
    printed = round_trip(source, capsys)
    assert printed.count("the model does not fit into free memory") == 2
    same_tensors(tmp_path / "exported", source)


def test_export_in_another_dtype_reports_the_rounding(tmp_path, capsys):
    source = folder_of(model(MASKED), tmp_path / "source")
    export(str(source), str(tmp_path / "bf16"), "bf16")
    assert "Rounding the weights moved the outputs by at most" in capsys.readouterr().out
    rounded = {name: tensor.bfloat16() for name, tensor in tensors(source).items()}
    found = tensors(tmp_path / "bf16")
    assert all(torch.equal(found[name], tensor) for name, tensor in rounded.items())
    export(str(tmp_path / "bf16"), str(tmp_path / "fp32"), "fp32")
    assert "Rounding" not in capsys.readouterr().out
    assert tensors(tmp_path / "fp32")[QUERY].dtype == torch.float32
    damaged(source, lambda held: held | {QUERY: held[QUERY] * 1e6})
    with pytest.raises(DataError, match=rf"numbers in {QUERY} beyond 65504.*dtype=bf16"):
        export(str(source), str(tmp_path / "fp16"), "fp16")
    assert left_nothing(tmp_path, "source", "bf16", "fp32")


@pytest.mark.parametrize("parts", [1, 2])
def test_import_takes_original_checkpoints(parts, tmp_path, capsys):
    """Whole and split by rank, a file and its folder; 128 ids, so there is no tokenizer for it."""
    (tmp_path / "original").mkdir()
    path = original.write(tmp_path / "original", parts)
    with pytest.raises(DataError, match=r"original has no sentencepiece\.bpe\.model"):
        import_model(str(path), str(tmp_path / "out"))
    import_model(str(path), str(tmp_path / "out"), "none")
    import_model(str(path.parent), str(tmp_path / "again"), "none")
    language, classifier = original.their_models()
    imported = open_trained(tmp_path / "out")
    assert imported.head == MASKED
    sample = sample_of(None, imported.config)
    found = check.model_outputs(MASKED, imported.model(), sample)
    assert check._difference(found, check.model_outputs(MASKED, language, sample), sample) <= 2e-5
    export(str(tmp_path / "again"), str(tmp_path / "exported"))
    same_tensors(tmp_path / "exported", folder_of(language, tmp_path / "expected"))
    assert "mnli" in capsys.readouterr().out  # a head that is skipped
    import_model(str(path), str(tmp_path / "head"), "none", "mnli")
    imported = open_trained(tmp_path / "head")
    assert imported.config.num_labels == 3
    found = check.model_outputs(imported.head, imported.model(), sample)
    expected = check.model_outputs(imported.head, classifier, sample)
    assert check._difference(found, expected, sample) <= 2e-5
