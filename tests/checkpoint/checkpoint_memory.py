"""Memory and time of saving and loading on the ranks of a model; for a test and a benchmark."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mlm import checkpoint
from mlm.config import OptimConfig
from mlm.model.config import ModelConfig
from mlm.model.masked_lm import masked_lm_layers
from mlm.training.optimizer import make_adamw
from parallel.engine.build import build_engine
from parallel.engine.interface import Engine, EngineSettings
from parallel.groups import make_grid
from parallel.layout import Layout
from tests.memory import added_by
from tests.state_reading import newest_checkpoint


@dataclass(frozen=True)
class Cost:
    """The cost of a rank: bytes of its part of the state; bytes added at the peak of each call, and
    seconds that a call of `save` takes."""

    state_bytes: int
    save: int
    save_seconds: float
    background: int
    background_seconds: float
    load: int


def engine_of(config: ModelConfig, layout: Layout) -> Engine:
    grid = make_grid(layout)
    layers = masked_lm_layers(config, group=grid.tp, seed=1, seq_len=64, masked=10)
    return build_engine(
        layers, grid, lambda named: make_adamw(named, OptimConfig()), EngineSettings(1, 1)
    )


def cost(config: ModelConfig, layout: Layout, folder: Path) -> Cost:
    """Saves twice, at once and in the background, and loads."""
    engine = engine_of(config, layout)
    for piece in engine.pieces():
        for number, tensor in enumerate(piece.tensors.values()):
            tensor.fill_(number + 1.0)  # so that all of it is in memory
    held = {p.data_ptr() for piece in engine.pieces() for p in piece.tensors.values()}
    state_bytes = sum(4 * len(t) for piece in engine.pieces() for t in piece.tensors.values())
    found, seconds = [], []
    for background in (False, True):
        saver = checkpoint.Saver(engine, folder, checkpoint.Keep(2), background)
        manifest = checkpoint.Manifest(1 + background, 0, "", {})

        def save(saver=saver, manifest=manifest) -> float:
            began = time.perf_counter()
            saver.save(manifest)
            took = time.perf_counter() - began
            saver.wait()
            return took

        added, took = added_by(save)
        found.append(added)
        seconds.append(took)
        del saver, save
    step = newest_checkpoint(folder)
    for piece in engine.pieces():
        for tensor in piece.tensors.values():
            tensor.zero_()
    load, _ = added_by(lambda: checkpoint.restore(engine, step, 2))
    for piece in engine.pieces():
        for number, tensor in enumerate(piece.tensors.values()):
            assert torch.equal(tensor, torch.full_like(tensor, number + 1.0)), piece.name
    assert held == {p.data_ptr() for piece in engine.pieces() for p in piece.tensors.values()}
    return Cost(state_bytes, found[0], seconds[0], found[1], seconds[1], load)
