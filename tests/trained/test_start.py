"""What a run takes from the model that it starts with, before any rank starts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlm
from launch.cli import main
from mlm import checkpoint
from mlm.errors import CONFIG, DATA
from mlm.hf.export import export
from mlm.tokenizer.ids import MODEL_FILE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.start import starting_model
from tests.exported_run import trained_run
from tests.launch.launch_fixtures import ranks
from tests.published_folders import MASKED, source_of
from tests.state_reading import newest_checkpoint
from tests.text_fixtures import corpus, shards_folder, tokenizer

__all__ = ["ranks"]  # a fixture

SMALL = ["tracker=none", "train.device=cpu", "data.seq_len=32", "train.dtype=fp32"]


def test_starting_model_refuses_what_cannot_be_pretrained(tmp_path):
    made = mlm.XLMRobertaXLConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        position_embedding_type="relative_key",
    )
    mlm.XLMRobertaXLForMaskedLM(made, seed=1).save_pretrained(tmp_path / "relative")
    with pytest.raises(ValueError, match="has position_embedding_type=relative_key, and mod"):
        starting_model(tmp_path / "relative")
    made.position_embedding_type, made.pruned_heads = "absolute", {0: [1]}
    mlm.XLMRobertaXLForMaskedLM(made, seed=1).save_pretrained(tmp_path / "pruned")
    with pytest.raises(ValueError, match="has pruned heads, and models are pretrained with all"):
        starting_model(tmp_path / "pruned")
    made.pruned_heads, made.is_decoder = {}, True
    mlm.XLMRobertaXLForCausalLM(made, seed=1).save_pretrained(tmp_path / "decoder")
    assert (
        "it was a decoder, and now each token also sees those after it"
        in starting_model(tmp_path / "decoder").message
    )


def test_starting_model_determines_every_setting_of_the_shape(tmp_path):
    changed = {
        "hidden_act": "relu",
        "layer_norm_eps": 1e-3,
        "num_attention_heads": 2,
        "max_position_embeddings": 50,
        "intermediate_size": 96,
        "type_vocab_size": 3,
        "num_hidden_layers": 2,
    }
    found = starting_model(source_of(tmp_path / "source", **changed)).model
    assert {name: found[name] for name in changed} == changed


def settings_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_start_takes_shape_and_tokenizer_from_the_weights(ranks, capfd):
    source = source_of(ranks.parent / "source", intermediate_size=96)
    arguments = ["train", *SMALL, f"data.corpus={corpus()}", f"weights={source}"]
    assert main([*arguments, "run.name=a", "model.hidden_dropout_prob=0.25"]) == 0
    out = capfd.readouterr().out
    assert out.count(f"Starting with the weights of {source}, an {MASKED}\n") == 1
    settings = settings_of(ranks / "runs" / "a")
    assert settings["weights"] == str(source)
    assert settings["model"]["intermediate_size"] == 96
    assert settings["model"]["vocab_size"] == 512
    assert settings["model"]["hidden_dropout_prob"] == 0.25
    assert settings["model"]["attention_probs_dropout_prob"] == 0.1  # not the 0.0 of the folder
    assert settings["data"]["tokenizer"] == str(source)
    copied = sorted(path.name for path in Path(settings["data"]["shards"], "tokenizer").iterdir())
    assert copied == [MODEL_FILE]
    # Shards written with this tokenizer are accepted, too; the run is named without a model.
    shards = ["train", *SMALL, f"data.shards={shards_folder()}", f"weights={source}"]
    assert main([*shards, "run.dir=others"]) == 0
    assert [path.name[:4] for path in (ranks / "others").iterdir()] == ["run-"]


def test_start_needs_only_a_tokenizer_json(ranks, capfd):
    full, source = source_of(ranks.parent / "full"), ranks.parent / "source"
    export(str(full), str(source))
    (source / MODEL_FILE).unlink()
    arguments = ["train", *SMALL, f"weights={source}", "run.name=a"]
    assert main([*arguments, f"data.corpus={corpus()}"]) == 0
    settings = settings_of(ranks / "runs" / "a")
    assert settings["data"]["tokenizer"] == str(source)
    inside = Tokenizer.load(Path(settings["data"]["shards"], "tokenizer"))
    assert inside.same_ids(tokenizer())
    # With or without a tokenizer.json, it is the same tokenizer.
    given = f"data.tokenizer={tokenizer().model_path.parent}"
    assert main([*arguments[:-1], f"data.corpus={corpus()}", given, "run.name=b"]) == 0
    capfd.readouterr()
    assert main([*arguments[:-1], f"data.corpus={corpus()}", "data.vocab_size=900"]) == CONFIG
    assert (
        f"data.vocab_size=900 is for a tokenizer that is trained here, and the one in {source} "
        "has 400 ids; omit it" in capfd.readouterr().err
    )


def test_start_refuses_a_shape_that_contradicts_the_weights(ranks, capfd):
    source = source_of(ranks.parent / "source")
    arguments = ["train", *SMALL, f"data.corpus={corpus()}", f"weights={source}"]
    capfd.readouterr()
    for given, asked, value in (
        ("model=tiny", "hidden_size=64", 32),
        ("model=xl", "hidden_size=2560", 32),
        ("model.num_hidden_layers=5", "num_hidden_layers=5", 4),
        ("model.vocab_size=1024", "vocab_size=1024", 512),
        ("experiment=xlm-r-xl", "hidden_size=2560", 32),
    ):
        assert main([*arguments, given]) == CONFIG
        err = capfd.readouterr().err
        assert f"{given} asks for {asked}, and weights={source} has {value}; omit it" in err
        assert err.count("\n") == 1
    assert main([*arguments, "model.num_hidden_layers=4", "data.seq_len=64"]) == CONFIG
    assert "data.seq_len=64 is above the 32 tokens" in capfd.readouterr().err
    assert main([*arguments, "weights="]) == CONFIG
    assert "weights is empty" in capfd.readouterr().err
    assert main([*arguments[:-1], "weights=nowhere"]) == CONFIG
    assert "nowhere is not a folder; give a run folder" in capfd.readouterr().err
    assert list(ranks.iterdir()) == []


def test_start_refuses_another_tokenizer(ranks, tmp_path, capfd):
    source = source_of(tmp_path / "source")
    assert main(["tokenizer", f"corpus={corpus()}", f"out={tmp_path}/other", "vocab_size=300"]) == 0
    base = ["train", *SMALL, f"weights={source}"]
    assert main([*base, f"data.corpus={corpus()}", f"data.tokenizer={tmp_path}/other"]) == DATA
    assert "is not the tokenizer of weights=" in capfd.readouterr().err
    shards = ["shards", f"corpus={corpus()}", f"tokenizer={tmp_path}/other"]
    assert main([*shards, f"out={tmp_path}/shards", "workers=1"]) == 0
    assert main([*base, f"data.shards={tmp_path}/shards"]) == DATA
    assert "were written with tokenizer" in capfd.readouterr().err
    (source / MODEL_FILE).unlink()
    assert main([*base, f"data.corpus={corpus()}"]) == CONFIG
    assert "has no tokenizer; add data.tokenizer=DIR, the one that the" in capfd.readouterr().err
    given = f"data.tokenizer={tokenizer().model_path.parent}"
    assert main([*base, f"data.corpus={corpus()}", given, "run.name=given"]) == 0
    assert list(ranks.iterdir()) == [ranks / "runs"]


def test_run_keeps_the_checkpoint_that_it_started_with(ranks, tmp_path, capfd):
    source = shutil.copytree(trained_run(), tmp_path / "source")
    step = newest_checkpoint(source)
    base = ["train", *SMALL, f"data.shards={shards_folder()}", "run.name=a"]
    assert main([*base, f"weights={source}"]) == 0
    assert settings_of(ranks / "runs" / "a")["weights"] == str(step)
    later = step.with_name("step-00000009")
    shutil.copytree(step, later)
    assert main([*base, f"weights={source}"]) == CONFIG  # nothing is saved yet
    assert f"holds a run with weights={step}, not {later}" in capfd.readouterr().err
    # With a checkpoint of its own it resumes without the weights that it started with.
    shutil.copytree(step, ranks / "runs" / "a" / "checkpoints" / "step-00000001")
    shutil.rmtree(source)
    assert main([*base, f"weights={source}"]) == 0
    assert "Beginning" not in capfd.readouterr().out
    assert main([*base, f"weights={tmp_path}/elsewhere"]) == CONFIG
    assert main(base) == 0  # with its own settings, the weights among them
    assert settings_of(ranks / "runs" / "a")["weights"] == str(step)
    assert main([*base, f"weights={source}", "model.hidden_size=64"]) == CONFIG
    assert "model.hidden_size=64 asks for hidden_size=64" in capfd.readouterr().err


def test_fresh_start_keeps_the_weights_that_it_starts_with(ranks, tmp_path, capfd):
    run = tmp_path / "runs" / "mine"
    shutil.copytree(trained_run(), run)
    given = [f"data.shards={shards_folder()}", f"run.dir={run.parent}", "run.name=mine"]
    assert main(["train", f"weights={run}", *given, *SMALL, "run.fresh=true"]) == CONFIG
    assert "run.fresh=true would delete" in capfd.readouterr().err
    assert checkpoint.newest(run) is not None
