"""Exported folders, held against transformers and sentencepiece."""

import json
import math
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm import checkpoint
from mlm.errors import DataError, UserError
from mlm.family.heads import HEADS, MASKED_LM
from mlm.family.plain import Sample, plain_outputs
from mlm.hf import check
from mlm.hf import export as hf
from mlm.tokenizer.published_files import backend
from mlm.tokenizer.training import train
from mlm.trained.opening import open_trained
from mlm.weights import write
from mlm.weights.stored import open_checkpoint
from tests.exported_run import STEPS, exported, trained_run
from tests.published_folders import tokenizer_in
from tests.state_reading import newest_checkpoint
from tests.text_fixtures import paragraphs, tokenizer


def padded_batch(config) -> Sample:
    lengths = torch.tensor([20, 7, 1])
    ids = torch.randint(4, config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    ids = ids.masked_fill(torch.arange(20) >= lengths[:, None], config.pad_token_id)
    return Sample(ids, lengths, torch.zeros_like(ids))


def test_export_gives_the_logits_of_the_run_in_transformers():
    model = AutoModelForMaskedLM.from_pretrained(exported(), local_files_only=True).eval()
    assert type(model).__name__ == "XLMRobertaXLForMaskedLM"
    assert model.dtype == torch.float32
    trained = open_trained(trained_run())
    sample = padded_batch(model.config)
    theirs = check.model_outputs(MASKED_LM, model, sample)
    ours = check.outputs(trained, sample)
    assert ours.std() > 0.1, "all logits alike would agree, too"
    assert (ours - theirs)[sample.real].abs().max() <= 1e-4
    values = json.loads((exported() / "config.json").read_text())
    plain = plain_outputs(
        HEADS[MASKED_LM].plain, values, check.safetensors_reader(exported()), sample
    )
    assert (plain - theirs)[sample.real].abs().max() <= 1e-4
    again = check.outputs(open_trained(exported()), sample)
    assert torch.equal(again, ours)


def test_export_has_the_weights_of_the_checkpoint():
    held = open_checkpoint(newest_checkpoint(trained_run()))
    weights = {name: held.read(name) for name in held.shapes}
    with safe_open(exported() / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), weights[name]) for name in weights)
    _, report = AutoModelForMaskedLM.from_pretrained(
        exported(), local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_export_writes_config_and_card():
    config = json.loads((exported() / "config.json").read_text())
    assert config["vocab_size"] == tokenizer().padded_size > tokenizer().size
    assert config["model_type"] == "xlm-roberta-xl"
    assert "output_dropout" not in config
    card = (exported() / "README.md").read_text()
    assert card.startswith('---\nlanguage:\n- "el"\n- "sw"\n')
    assert "| sw | 5.7500 | 5.1250 |" in card
    assert f"| Steps | {STEPS} of {STEPS} |" in card
    assert "| Tokens in all | 512 |" in card


def test_exported_tokenizer_has_only_real_ids():
    theirs = AutoTokenizer.from_pretrained(exported(), local_files_only=True)
    assert len(theirs) == theirs.vocab_size == tokenizer().size
    assert theirs.mask_token_id == tokenizer().mask
    special = [theirs.bos_token_id, theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id]
    assert special == [0, 1, 2, 3]
    assert (theirs.cls_token_id, theirs.sep_token_id) == (0, 2)
    assert theirs.model_max_length == 32
    assert theirs.get_vocab() == {
        piece: id for id, piece in enumerate(tokenizer().pieces(range(tokenizer().size)))
    }
    assert theirs.decode(theirs("kabu ab", add_special_tokens=False).input_ids) == "kabu ab"


def test_export_refuses_swapped_tensors_and_leaves_nothing(tmp_path, monkeypatch):
    real = write.write_safetensors
    names = [
        "roberta.encoder.layer.0.attention.self.query.weight",
        "roberta.encoder.layer.0.attention.self.key.weight",
    ]
    other = dict(zip(names, names[::-1], strict=True))

    def swapping(path, shapes, read, dtypes):
        real(path, shapes, lambda name: read(other.get(name, name)), dtypes)

    monkeypatch.setattr(write, "write_safetensors", swapping)
    with pytest.raises(UserError, match=r"logits that differ from those of .* by up to [0-9.]+"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_a_wrong_config_without_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    made = hf.hf_config
    monkeypatch.setattr(hf, "hf_config", lambda trained: made(trained) | {"hidden_act": "relu"})
    with pytest.raises(UserError, match="the exported model, read again from its files, gives"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_a_wrong_tokenizer(tmp_path, monkeypatch):
    def shifted(trained):
        made = backend(trained)
        made.normalizer = tokenizers.normalizers.Lowercase()
        return made

    monkeypatch.setattr("mlm.tokenizer.published_files.backend", shifted)
    with pytest.raises(UserError, match="gives other ids than sentencepiece"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_export_without_transformers_checks_the_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    step = newest_checkpoint(trained_run())
    hf.export(str(step), str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "read again: ids are equal on 31 lines" in printed
    assert printed.rstrip().endswith("transformers is not installed, so it was not compared.")
    for path in exported().iterdir():
        expected = path.read_text("utf-8", "ignore").replace("exported", "out")
        assert (tmp_path / "out" / path.name).read_text("utf-8", "ignore") == expected


def test_export_writes_shards_of_large_models(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_BYTES", 40_000)
    hf.export(str(trained_run()), str(tmp_path / "out"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    whole = open_trained(exported())
    parts = open_trained(tmp_path / "out")
    numbers = sum(math.prod(shape) for shape in whole.weights.shapes.values())
    assert index["metadata"]["total_size"] == 4 * numbers
    assert list(parts.weights.shapes) == list(whole.weights.shapes)
    for name in whole.weights.shapes:
        assert torch.equal(parts.weights.read(name), whole.weights.read(name))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True)
    weight = model.roberta.embeddings.word_embeddings.weight
    assert torch.equal(weight, whole.weights.read("roberta.embeddings.word_embeddings.weight"))


def test_export_overwrites_nothing(tmp_path):
    with pytest.raises(UserError, match="exists, and nothing is overwritten; choose another"):
        hf.export(str(trained_run()), str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"out cannot be written: .*; free some space"):
        hf.export(str(trained_run()), str(tmp_path / "file" / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_export_leaves_nothing_on_a_full_disk(tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"the beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_safetensors", full)
    with pytest.raises(UserError, match="out cannot be written: No space left on device; free"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_open_trained_refuses_folders_without_a_model(tmp_path):
    with pytest.raises(UserError, match="missing is not a folder; give a run folder"):
        open_trained(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no whole checkpoint and no config\.json; give"):
        open_trained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type='bert' is another architecture than 'xlm-rob"):
        open_trained(tmp_path)


def copied_run(tmp_path: Path, change) -> Path:
    """A copy of the run whose settings, in the manifest of its checkpoint, are changed."""
    run = tmp_path / "run"
    shutil.copytree(trained_run(), run)
    path = newest_checkpoint(run) / checkpoint.MANIFEST
    values = json.loads(path.read_text())
    change(values["config"])
    path.write_text(json.dumps(values))
    return run


def test_open_trained_finds_a_copy_of_the_tokenizer(tmp_path):
    shards = tmp_path / "shards"
    run = copied_run(
        tmp_path, lambda config: config["data"].update(tokenizer="gone", shards=str(shards))
    )
    with pytest.raises(DataError, match=r"the tokenizer of .*run is in none of gone, .*shards"):
        open_trained(run)
    shutil.copytree(tokenizer().model_path.parent, shards / "tokenizer")
    assert tokenizer_in(run).model_path.is_relative_to(shards)
    other = tmp_path / "corpus"
    other.mkdir()
    (other / "en.txt").write_text("\n".join(paragraphs("en", 100)))
    shutil.rmtree(shards / "tokenizer")
    train(other, shards / "tokenizer", 100)
    with pytest.raises(DataError, match=r"is not the tokenizer that .*run was trained with"):
        open_trained(run)


def test_export_refuses_a_damaged_checkpoint(tmp_path):
    run = copied_run(tmp_path, lambda config: None)
    part = next(iter(newest_checkpoint(run).glob("*.distcp")))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=r"distcp is damaged"):
        hf.export(str(run), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_start_refuses_weights_that_do_not_fit_the_config(tmp_path):
    run = copied_run(tmp_path, lambda config: config["model"].update(intermediate_size=128))
    with pytest.raises(DataError, match=r"intermediate\.dense|output\.dense"):
        open_trained(run)
