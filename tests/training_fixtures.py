"""A small run: its config, and ranks that train it as forks of this process."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mlm import checkpoint
from mlm.config import TrainConfig, as_dict, load
from mlm.training import rank
from tests.ranks import run_ranks
from tests.text_fixtures import shards_folder, tokenizer

SETTINGS = {
    "model": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 34,
        "initializer_range": 0.05,
    },
    "parallel": {"tp": 1, "pp": 1, "dp": 1, "zero": 1},
    "train": {
        "steps": 6,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "dtype": "fp32",
        "device": "cpu",
        "log_every": 1,
    },
    "optim": {"lr": 3e-3, "clip": 0.5},
    "schedule": {"kind": "cosine", "warmup_steps": 2},
    "eval": {"every": 3, "blocks_per_language": 2},
    "checkpoint": {"every": 2, "keep": 2},
    "tracker": {"kind": "none"},
}


def config(**sections: Any) -> TrainConfig:
    """The settings above with `section={key: value}` differences."""
    assert tokenizer().padded_size == 512
    settings = as_dict(replace(TrainConfig()))
    settings["data"] |= {"shards": str(shards_folder()), "seq_len": 32}
    for section, values in SETTINGS.items():
        settings[section] |= values
    for section, values in sections.items():
        if isinstance(values, dict):
            settings[section] |= values
        else:
            settings[section] = values
    warmup, steps = settings["schedule"]["warmup_steps"], settings["train"]["steps"]
    settings["schedule"]["warmup_steps"] = min(warmup, steps)
    return load(TrainConfig, settings)


def run(folder: Path, settings: TrainConfig) -> dict:
    """Trains in `folder` as a launcher does; the outcome, on which all ranks agree."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outcome.json").unlink(missing_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(settings)))
    degrees = settings.parallel
    world = degrees.tp * degrees.pp * int(degrees.dp)
    codes = run_ranks(world, rank.main, str(folder / "config.yaml"))
    outcome = json.loads((folder / "outcome.json").read_text())
    assert set(codes) == {outcome["code"]}, (codes, outcome)
    return outcome


def metrics(folder: Path) -> list[dict]:
    """The rows of logged steps, without evaluations."""
    return [row for row in all_rows(folder) if "loss" in row]


def evaluations(folder: Path) -> list[dict]:
    return [row for row in all_rows(folder) if "eval_loss" in row]


def all_rows(folder: Path) -> list[dict]:
    """Without the times at which they were written."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run that has one."""
    found = checkpoint.newest(folder)
    assert found is not None
    return found
