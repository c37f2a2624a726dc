"""A run of a few steps over tensor-parallel and pipeline ranks, and its export."""

import json
import tempfile
from functools import cache
from pathlib import Path

import yaml

from mlm import checkpoint
from mlm.config import TrainConfig, as_dict, defaults, load
from mlm.hf.export import export
from mlm.training.build import build
from tests.ranks import run_ranks
from tests.text_fixtures import shards_folder, tokenizer

STEPS = 2
_kept = tempfile.TemporaryDirectory(prefix="polymlm-")


def _settings() -> TrainConfig:
    composed = defaults(TrainConfig)
    composed["model"] |= {
        "vocab_size": tokenizer().padded_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,  # so that logits differ enough to tell weights apart
    }
    composed["parallel"] |= {"tp": 2, "pp": 2, "dp": 1}
    composed["data"] |= {
        "shards": str(shards_folder()),
        "tokenizer": str(tokenizer().model_path.parent),
        "seq_len": 32,
    }
    composed["train"] |= {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 4}
    composed["train"] |= {"dtype": "fp32", "device": "cpu"}
    composed["optim"] |= {"lr": 1e-2}
    composed["tracker"] |= {"kind": "none"}
    return load(TrainConfig, composed)


def _train(config: TrainConfig, folder: Path) -> None:
    run = build(config)
    for step in range(STEPS):
        batches = run.micro_batches(step)
        scaled = run.scaled(batches, step, run.task.normaliser(batches))
        run.engine.train_batch(scaled, config.optim.lr)
    samples = STEPS * config.train.global_batch_size
    manifest = checkpoint.Manifest(STEPS, samples, run.task.data_hash, as_dict(config))
    checkpoint.Saver(run.engine, folder, checkpoint.Keep(1)).save(manifest)


@cache
def trained_run() -> Path:
    """A run folder as `mlm train` leaves it, trained by four ranks: tp 2, pp 2."""
    run, config = Path(_kept.name) / "run", _settings()
    run_ranks(4, _train, config, run)
    (run / "config.yaml").write_text(yaml.safe_dump(as_dict(config)))
    (run / "data.json").write_text(json.dumps({"tokenizer": tokenizer().hash}))
    scored = {
        "step": STEPS,
        "eval_loss": 5.5,
        "eval_unigram_entropy": 5.25,
        "eval_loss_by_language": {"sw": 5.75, "el": None},
        "eval_unigram_entropy_by_language": {"sw": 5.125},
    }
    (run / "evaluation.json").write_text(json.dumps(scored))
    return run


@cache
def exported() -> Path:
    """The Hugging Face folder of `trained_run`."""
    out = Path(_kept.name) / "exported"
    export(str(trained_run()), str(out))
    return out
