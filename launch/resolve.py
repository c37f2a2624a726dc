"""What a composed config leaves to the machine: the device, and the degree of data parallelism."""

import os
from dataclasses import replace

import mlm.config
from launch.machine import memory_limit
from mlm.config import TrainConfig
from mlm.errors import UserError
from mlm.training.memory import check_memory
from parallel.layout import Layout, LayoutError


def resolve(config: TrainConfig, processes: int | None = None) -> tuple[TrainConfig, Layout]:
    """The config with `train.device` and `parallel.dp` decided, and its checked layout.

    `processes` that were started by somebody else must be as many as the layout needs; None: they
    are still to be started, on this machine. Raises `UserError`, also where the machine's memory is
    smaller than the state.
    """
    device, gpus = _device(config.train.device)
    dp = config.parallel.dp
    if dp == "auto":
        dp = _fitting_dp(config.parallel.tp * config.parallel.pp, gpus, processes)
    layout = mlm.config.layout(config, dp)
    try:
        if processes is not None:
            layout.check_processes(processes)
        layout.grad_accum_steps(config.train.global_batch_size, config.train.micro_batch_size)
    except LayoutError as error:
        raise UserError(str(error)) from None
    here = layout.world_size if processes is None else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device == "cuda" and here > gpus:
        raise UserError(
            f"parallel.tp={layout.tp} x parallel.pp={layout.pp} x parallel.dp={layout.dp} puts "
            f"{here} processes on this machine, and each needs a GPU of the {gpus} visible ones; "
            f"lower the degrees, or add train.device=cpu"
        )
    if device == "cpu":  # a rank asks its GPU itself
        check_memory(config, layout, memory_limit(), here, "machine")
    return (
        replace(
            config,
            parallel=replace(config.parallel, dp=dp),
            train=replace(config.train, device=device),
        ),
        layout,
    )


def _device(given: str) -> tuple[str, int]:
    """`("cuda", visible GPUs)` or `("cpu", 0)`."""
    if given == "cpu":
        return "cpu", 0
    import torch

    gpus = torch.cuda.device_count()
    if given == "cuda" and gpus == 0:
        raise UserError(
            "train.device=cuda is asked for, and no GPU is visible here; use train.device=cpu (or "
            "auto), or start where there is one"
        )
    return ("cuda", gpus) if gpus else ("cpu", 0)


def _fitting_dp(replica: int, gpus: int, processes: int | None) -> int:
    """Copies of a model of `replica` processes that fit; at least 1, which a check may refuse."""
    if processes is not None:
        return max(1, processes // replica)
    return max(1, gpus // replica)
