"""`mlm train weights=PATH`: continued pretraining of a trained model, in any layout."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlm import checkpoint
from mlm.config import TrainConfig, as_dict
from mlm.errors import CONFIG, DONE
from mlm.hf.export import export
from mlm.hf.importing import import_model
from mlm.trained.start import starting_model
from mlm.training.build import build
from mlm.weights.stored import open_checkpoint
from tests.launch.launch_fixtures import ranks
from tests.launch.test_cli import start
from tests.published_folders import QUERY, same_tensors, source_of, tensors
from tests.ranks import run_ranks
from tests.state_reading import newest_checkpoint, whole_weights
from tests.text_fixtures import corpus, tokenizer
from tests.training_fixtures import config, metrics, run

__all__ = ["ranks"]  # a fixture

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SMALL = ["tracker=none", "train.device=cpu", "data.seq_len=32", "train.dtype=fp32"]


def starting(weights: Path, **sections: Any) -> TrainConfig:
    data = {"tokenizer": str(tokenizer().model_path.parent)} | sections.pop("data", {})
    return replace(config(data=data, **sections), weights=str(weights))


def built_and_saved(settings: TrainConfig, run: str) -> None:
    """What a rank does before its first step, saved as a checkpoint of step 1."""
    parts = build(settings)
    manifest = checkpoint.Manifest(1, 0, parts.task.data_hash, as_dict(settings))
    checkpoint.Saver(parts.engine, Path(run), checkpoint.Keep(1)).save(manifest)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("parallel", "dtype"),
    [
        ({"tp": 2, "pp": 2}, "fp32"),
        ({"dp": 2, "zero": 3}, "fp32"),
        ({"tp": 2, "pp": 2}, "bf16"),
        ({"tp": 2, "dp": 2, "zero": 3}, "bf16"),
        pytest.param({"tp": 2, "dp": 2, "zero": 2}, "bf16", marks=pytest.mark.slow),
        pytest.param({"tp": 4}, "fp32", marks=pytest.mark.slow),
    ],
    ids=["2-2-1-z1", "1-1-2-z3", "2-2-1-z1-bf16", "2-1-2-z3-bf16", "2-1-2-z2-bf16", "4-1-1-z1"],
)
def test_ranks_load_and_export_five_shards_bit_equally(parallel, dtype, tmp_path):
    """fp32 masters equal the weights of the folder, also where ranks compute in bf16."""
    source = source_of(tmp_path / "source", shard="44KB")
    assert len(list(source.glob("*.safetensors"))) == 5
    settings = starting(source, parallel=parallel, train={"dtype": dtype})
    world = settings.parallel.tp * settings.parallel.pp * int(settings.parallel.dp)
    run_ranks(world, built_and_saved, settings, str(tmp_path / "run"))
    export(str(tmp_path / "run"), str(tmp_path / "exported"))
    same_tensors(tmp_path / "exported", source)


def restarted(settings: TrainConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The fp32 weights of an engine as it was built, and after a step and a restart."""
    parts = build(settings)

    def weights() -> dict[str, torch.Tensor]:
        return {name: weight.clone() for name, _, weight in whole_weights(parts.engine)}

    first = weights()
    batches = parts.micro_batches(0)
    parts.engine.train_batch(parts.scaled(batches, 0, parts.task.normaliser(batches)), 1e-2)
    assert not torch.equal(first[QUERY], weights()[QUERY])
    parts.restart()
    return first, weights()


@pytest.mark.ranks
@pytest.mark.parametrize("head", ["XLMRobertaXLForMaskedLM", "XLMRobertaXLModel"])
def test_restart_gives_back_the_masters_of_a_bf16_run(head, tmp_path):
    """Not rounded, as a new engine makes them; also beside a new head, whose weights are."""
    source = source_of(tmp_path / "source", head)
    ((first, again),) = run_ranks(1, restarted, starting(source, train={"dtype": "bf16"}))
    stored = {name.removeprefix("roberta."): tensor for name, tensor in tensors(source).items()}
    assert not torch.equal(first[QUERY], first[QUERY].bfloat16().float())
    assert first["lm_head.dense.weight"].any()  # a new head has weights of its own
    for name, weight in first.items():
        assert torch.equal(again[name], weight), name
        kept = stored.get(name.removeprefix("roberta."))
        assert kept is None or torch.equal(kept, weight), name


def resumed(settings: TrainConfig) -> None:
    build(settings, resuming=True)


@pytest.mark.ranks
def test_build_does_not_open_the_weights_of_a_run_that_resumes(tmp_path):
    """They may be gone by then; its checkpoint has all."""
    run_ranks(1, resumed, starting(tmp_path / "gone", train={"dtype": "bf16"}))


def read_by_rank(settings: TrainConfig) -> int:
    """How many numbers of the weights a rank has read when its engine is built."""
    from mlm.weights.files import _BinaryFile

    counted, read_into = [], _BinaryFile.read_into

    def counting(self: _BinaryFile, buffer: memoryview, place: int) -> bool:
        counted.append(len(buffer))
        return read_into(self, buffer, place)

    _BinaryFile.read_into = counting
    build(settings)
    return sum(counted) // 4


@pytest.mark.ranks
def test_build_reads_only_the_slices_of_a_rank(tmp_path):
    source = source_of(tmp_path / "source")
    found = run_ranks(4, read_by_rank, starting(source, parallel={"tp": 2, "pp": 2}))
    whole = sum(tensor.numel() for tensor in tensors(source).values())
    words = 512 * 32  # in the first stage and, tied, in the last
    assert whole + words <= sum(found) <= 1.1 * (whole + words)  # norms are on both tp ranks
    assert max(found) < 0.4 * whole


@pytest.mark.slow
@pytest.mark.ranks
def test_layouts_train_equally_and_resume_without_the_source(tmp_path):
    source = source_of(tmp_path / "source")
    losses = {}
    for name, parallel in (
        ("one", {}),
        ("four", {"tp": 2, "pp": 2}),
        ("zero", {"dp": 2, "zero": 3}),
    ):
        settings = starting(source, parallel=parallel, model=NO_DROPOUT)
        assert run(tmp_path / name, settings)["code"] == DONE
        losses[name] = [row["loss"] for row in metrics(tmp_path / name)]
    assert losses["four"] == pytest.approx(losses["one"], rel=1e-5)
    assert losses["zero"] == pytest.approx(losses["one"], rel=1e-5)
    fresh = config(model=NO_DROPOUT)
    run(tmp_path / "fresh", fresh)
    assert abs(metrics(tmp_path / "fresh")[0]["loss"] - losses["one"][0]) > 0.1
    # Again, as if killed after step 4, and without the source.
    settings = starting(source, model=NO_DROPOUT)
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    shutil.rmtree(newest_checkpoint(tmp_path / "again"))
    shutil.rmtree(source)
    assert run(tmp_path / "again", settings)["code"] == DONE
    assert [row["loss"] for row in metrics(tmp_path / "again")] == losses["one"]
    ours, theirs = (open_checkpoint(newest_checkpoint(tmp_path / n)) for n in ("again", "one"))
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.shapes)
    outcome = run(tmp_path / "new", settings)
    assert outcome["code"] == CONFIG
    assert "source is not a folder" in outcome["sentence"]


@pytest.mark.ranks
def test_step_without_learning_rate_keeps_the_weights(tmp_path):
    """Of an import and of a checkpoint; with a learning rate of 0 nothing moves."""
    source = source_of(tmp_path / "source", dtype=torch.bfloat16)
    import_model(str(source), str(tmp_path / "imported"))
    still = {"optim": {"lr": 0.0}, "train": {"steps": 1}, "parallel": {"tp": 2}}
    assert run(tmp_path / "first", starting(tmp_path / "imported", **still))["code"] == DONE
    assert run(tmp_path / "second", starting(tmp_path / "first", **still))["code"] == DONE
    export(str(tmp_path / "second"), str(tmp_path / "exported"), "bf16")
    same_tensors(tmp_path / "exported", source)


@pytest.mark.ranks
@pytest.mark.parametrize("head", ["XLMRobertaXLModel", "XLMRobertaXLForTokenClassification"])
def test_starting_model_reports_a_new_head(head, tmp_path):
    source = source_of(tmp_path / "source", head, num_labels=2)
    message = starting_model(source).message
    assert message.startswith(
        f"Starting with the weights of {source}, an {head}; it has no lm_head, "
    )
    skipped = "pooler" if head == "XLMRobertaXLModel" else "classifier"
    assert message.endswith(f"its {skipped} is skipped")
    settings = starting(source, parallel={"tp": 2})
    run_ranks(2, built_and_saved, settings, str(tmp_path / "run"))
    ours = open_checkpoint(newest_checkpoint(tmp_path / "run"))
    theirs = {name.removeprefix("roberta."): tensor for name, tensor in tensors(source).items()}
    run_ranks(1, built_and_saved, config(), str(tmp_path / "fresh"))
    fresh = open_checkpoint(newest_checkpoint(tmp_path / "fresh"))
    for name in ours.shapes:
        kept = theirs.get(name.removeprefix("roberta."))
        assert torch.equal(ours.read(name), fresh.read(name) if kept is None else kept), name
        assert (kept is None) == name.startswith("lm_head.")


@pytest.mark.slow
@pytest.mark.ranks
def test_command_line_imports_trains_and_exports(tmp_path):
    """import, train, resume without the source, export: each in its own process."""
    source = source_of(tmp_path / "source")
    still = ["optim.lr=0", "train.steps=1", "train.global_batch_size=8", "train.micro_batch_size=4"]
    train = [
        "train",
        *(each for each in SMALL if not each.startswith("data.vocab_size=")),
        *still,
        "data.shards=shards",
        "parallel.tp=2",
        "weights=imported",
        "run.name=on",
    ]
    shards = ["shards", f"corpus={corpus()}", "tokenizer=imported/tokenizer", "out=shards"]
    for arguments, message in (
        (
            ["import", "source", "imported"],
            "imported holds the model of source, an XLM",
        ),
        (shards, "Shards of 4 languages are in shards"),
        (train, "Starting with the weights of"),
        (train, "The one step is done"),
        (["export", "runs/on", "exported", "dtype=fp32"], "loaded in transformers"),
        (["fill", "exported", "kabu <mask>", "top=2"], "kabu"),
    ):
        done = start(["-m", "launch", *arguments], tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert message in done.stdout
        if arguments is train and (tmp_path / "imported").exists():
            shutil.rmtree(tmp_path / "imported")
    same_tensors(tmp_path / "exported", source)
