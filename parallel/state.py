"""The canonical state of training: master weights and moments, out of and into an engine.

DeepSpeed's own checkpoints resume only the layout that wrote them. What is read and written
here is each parameter's fp32 master weight and its two Adam moments, under layout-free names.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from parallel.engine import Engine

KINDS = ("weight", "exp_avg", "exp_avg_sq")


def read_state(engine: Engine) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
    """Name, parameter and its three fp32 tensors: this rank's tensor-parallel slice of each.

    A collective over the data ranks, parameter by parameter. Moments are zeros before the first
    step.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    _make_states(engine)
    for name, parameter in engine.parameters():
        tensors: dict[str, Any] = {"weight": safe_get_full_fp32_param(parameter)}
        for kind in KINDS[1:]:
            tensors[kind] = safe_get_full_optimizer_state(parameter, kind)
        yield name, parameter, {kind: tensor.detach() for kind, tensor in tensors.items()}


def write_state(engine: Engine, states: dict[str, dict[str, Tensor]], step: int) -> None:
    """Puts a state that `read_state` gave into an engine, `step` optimizer steps old.

    states: for every name of this rank, tensors of the shape of this rank's slice.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    _make_states(engine)
    zero = engine.grid.layout.zero
    for name, parameter in engine.parameters():
        tensors = states[name]
        safe_set_full_fp32_param(parameter, tensors["weight"])
        for kind in KINDS[1:]:
            safe_set_full_optimizer_state(parameter, tensors[kind], kind)
        if zero < 3:
            with torch.no_grad():
                parameter.copy_(tensors["weight"])
    if zero == 3:
        # Stage 3 computes with its own partitions, which nothing else refreshes from the masters.
        wrapped = engine.deepspeed.optimizer
        for group in range(len(wrapped.fp32_partitioned_groups_flat)):
            wrapped._reassign_or_swap_out_partitioned_parameters(group)
    for partition in _partitions(engine):
        engine.optimizer.state[partition]["step"].fill_(float(step))


def write_masters(engine: Engine, read: Callable[[str, nn.Parameter], Tensor | None]) -> None:
    """Puts fp32 master weights into a new engine that has made its own of rounded parameters.

    read: gives this rank's slice, whose rounded numbers the parameter has, or None for the master
    that is there. A collective over the data ranks.
    """
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in engine.parameters():
        value = read(name, parameter)
        if value is not None:
            safe_set_full_fp32_param(parameter, value)


def _partitions(engine: Engine) -> list[Tensor]:
    """The flat fp32 tensors that the optimizer steps on, on this data rank."""
    wrapped: Any = engine.deepspeed.optimizer
    for attribute in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bf16
    ):
        if hasattr(wrapped, attribute):
            return list(getattr(wrapped, attribute))
    raise AssertionError(f"{type(wrapped).__name__} holds its fp32 weights in no known place")


def _make_states(engine: Engine) -> None:
    """Makes Adam's state where a first step would, and links it to the parameters.

    DeepSpeed links it after the step of the first parameter group, when the others have none.
    """
    for partition in _partitions(engine):
        state = engine.optimizer.state[partition]
        if "exp_avg" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
            state["exp_avg"] = torch.zeros_like(partition)
            state["exp_avg_sq"] = torch.zeros_like(partition)
    wrapped: Any = engine.deepspeed.optimizer
    if hasattr(wrapped, "_hp_optimizer_states_linked"):
        wrapped._hp_optimizer_states_linked = False
        wrapped._lazy_init_hp_params_optimizer_state()
