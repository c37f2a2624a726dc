"""The engine of a layout."""

from collections.abc import Sequence

from parallel.engine.interface import Engine, EngineSettings, MakeOptimizer
from parallel.groups import ProcessGrid
from parallel.pipeline.stages import StageLayer


def build_engine(
    layers: Sequence[StageLayer],
    grid: ProcessGrid,
    make_optimizer: MakeOptimizer,
    settings: EngineSettings,
) -> Engine:
    """Builds this rank's part of the model and the engine that trains it; a collective.

    make_optimizer: gets the parameters under their names in a checkpoint
    """
    from parallel.engine.deepspeed_adapter.build import build  # imports DeepSpeed

    return build(layers, grid, make_optimizer, settings)
