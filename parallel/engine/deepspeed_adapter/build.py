"""Makes DeepSpeed's engine of a layout, and keeps it quiet."""

import io
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
import torch.distributed as dist

from parallel.engine.deepspeed_adapter.buffers import buffer_sizes
from parallel.engine.deepspeed_adapter.engine import PipelinedEngine, PlainEngine
from parallel.engine.interface import Engine, EngineSettings, MakeOptimizer
from parallel.groups import ProcessGrid
from parallel.pipeline.cut import cut
from parallel.pipeline.stages import StageLayer, WholeModel, canonical_name

NEVER = 10**12  # steps between two lines that DeepSpeed prints


def build(
    layers: Sequence[StageLayer],
    grid: ProcessGrid,
    make_optimizer: MakeOptimizer,
    settings: EngineSettings,
) -> Engine:
    """As `parallel.engine.build.build_engine`."""
    start_deepspeed()
    import deepspeed
    from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology

    layout = grid.layout
    topology = PipeModelDataParallelTopology(num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.dp)
    if layout.zero == 1:
        from parallel.engine.deepspeed_adapter.stage_module import StageModule

        model = StageModule(layers, cut(layers, layout.pp), topology, settings.recompute)
        order, mpu = model.ordered, None
    else:
        model, order = WholeModel(layers, settings.recompute), layers
        with redirect_stdout(io.StringIO()):  # it prints the topology
            mpu = _ModelParallelUnit(PipelineParallelGrid(topology=topology))
    model = model.to(settings.dtype)
    named = [(canonical_name(order, name), p) for name, p in model.named_parameters()]
    optimizer = make_optimizer(named)
    with redirect_stdout(io.StringIO()):  # its bf16 optimizer prints the memory in use
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_config(settings, layout.zero, [p.numel() for _, p in named]),
            mpu=mpu,
            dist_init_required=False,
        )
    parts = (engine, model, optimizer, layers, order, grid, settings.dtype)
    if layout.zero > 1:
        return PlainEngine(*parts)
    from parallel.engine.deepspeed_adapter.tied import keep_tied_copies_equal

    keep_tied_copies_equal(engine, grid.dp)
    return PipelinedEngine(*parts)


def start_deepspeed() -> None:
    """Puts DeepSpeed's communication on torch.distributed, which the caller has initialised."""
    _quieten()
    import deepspeed

    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even for a single process
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(
            dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False
        )


def _config(settings: EngineSettings, zero: int, sizes: Sequence[int]) -> dict[str, Any]:
    """DeepSpeed's configuration. sizes: of the parameters of this rank"""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.grad_accum_steps,
        "gradient_clipping": settings.clip,
        "steps_per_print": NEVER,
        "zero_optimization": {
            "stage": zero,
            **buffer_sizes(zero, sizes),
        },
        "zero_allow_untested_optimizer": True,
    }
    if settings.dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class _ModelParallelUnit:
    """DeepSpeed's grid with the one method that its plain engine calls and the grid lacks."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_tensor_model_parallel_group(self) -> Any:
        return self._grid.get_slice_parallel_group()


def _quieten() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives (a minute, and it needs a
    compiler) and from logging what is not news."""
    # Left to itself, it warns on machines without a GPU that it found none.
    accelerator = "cuda" if dist.get_backend() == "nccl" else "cpu"
    os.environ.setdefault("DS_ACCELERATOR", accelerator)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|deepspeed\.")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed.ops
    from deepspeed.utils import logger

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel(logging.ERROR)
