"""A training run as one rank holds it, made from its settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mlm.config import TrainConfig, layout
from mlm.plugins import entry
from mlm.tasks.table import TASKS
from mlm.tasks.task import Task
from mlm.trained.start import starting_weights
from mlm.training.optimizer import make_adamw
from mlm.weights.dtypes import BY_SETTING
from parallel.engine.build import build_engine
from parallel.engine.interface import Engine, EngineSettings
from parallel.groups import ProcessGrid, make_grid
from parallel.keys import key
from parallel.pipeline.stages import StageLayer


@dataclass(frozen=True)
class TrainingRun:
    """What a rank trains.

    restart: puts the engine back into the state that it was built with
    environment: what the run was started with, for its checkpoints
    """

    config: TrainConfig
    task: Task
    grid: ProcessGrid
    engine: Engine
    restart: Callable[[], None]
    environment: dict[str, Any] = field(default_factory=dict)

    def micro_batches(self, step: int) -> list[Any]:
        """This data rank's micro-batches of a step: every dp-th of the global batch."""
        dp, dp_rank = self.grid.layout.dp, self.grid.dp_rank
        return self.task.batches(step, range(dp_rank, self.task.micro_batches, dp))

    def scaled(self, batches: Sequence[Any], step: int, normaliser: int) -> list[Any]:
        """The micro-batches of a step with what it gives them: the scale that makes the engine's
        mean the sum over the global batch divided by `normaliser`, and dropout keys by number."""
        dp, dp_rank = self.grid.layout.dp, self.grid.dp_rank
        scale = len(batches) * dp / max(normaliser, 1)
        return [
            replace(
                batch,
                loss_scale=scale,
                dropout_key=key(self.config.seed, "dropout", step, place * dp + dp_rank),
            )
            for place, batch in enumerate(batches)
        ]


def _drawn_by_seed(layer: StageLayer, seed: int) -> StageLayer:
    """The layer with initial weights that the seed gives also where they come from torch's own
    generator, as in layers of a plug-in: the same in every layout and in every process."""

    def build() -> torch.nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(key(seed, "layer", layer.tied or layer.name))
            return layer.build()

    return replace(layer, build=build)


def build(config: TrainConfig, resuming: bool = False) -> TrainingRun:
    """Builds the task and the engine of a run; a collective. Raises `UserError` for data that does
    not fit.

    resuming: the caller restores a checkpoint into the engine, so `config.weights` is not read
    """
    train = config.train
    task = entry(TASKS, "task.kind", config.task.kind)(config)
    grid = make_grid(layout(config))
    starting = starting_weights(config) if config.weights is not None and not resuming else None
    settings = EngineSettings(
        train.micro_batch_size,
        grid.layout.grad_accum_steps(train.global_batch_size, train.micro_batch_size),
        config.optim.clip,
        BY_SETTING[train.dtype],
        train.recompute,
    )
    # On a CPU the fused optimizer rounds the last numbers of a data rank's partition differently,
    # and the partitions of two stages end at different places of the tied embedding.
    fused = train.device == "cuda" or grid.pp is None or grid.dp is None
    layers = task.layers(grid.tp, starting and starting.set_weights)
    engine = build_engine(
        [_drawn_by_seed(layer, config.seed) for layer in layers],
        grid,
        lambda named: make_adamw(named, config.optim, fused),
        settings,
    )
    # In bf16 the engine makes its masters of rounded weights.
    exact = starting if settings.dtype != torch.float32 else None
    if exact is not None:
        exact.write_masters(engine)

    def restart() -> None:
        engine.reset()
        if exact is not None:
            exact.write_masters(engine)

    return TrainingRun(config, task, grid, engine, restart)
