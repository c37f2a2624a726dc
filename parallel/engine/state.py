"""The canonical state of training: master weights and moments, where an engine keeps them.

DeepSpeed's own checkpoints resume only the layout that wrote them. Here each rank's part of the
state is seen as pieces of parameters under layout-free names: views of the flat fp32 tensors that
the optimizer steps on, so that a checkpoint is written from them and read into them without a copy,
and no rank holds more than its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine.deepspeed import Engine
from parallel.pipeline.stages import StageLayer, name_of

KINDS = ("weight", "exp_avg", "exp_avg_sq")
SPREAD = 1 << 22  # numbers that are sent at once


@dataclass(frozen=True)
class Piece:
    """What this rank holds of a parameter: elements from `start` on of its flattened slice.

    name: in a checkpoint; shape: of this rank's tensor-parallel slice
    tensors: fp32, 1-D and of one length, by the names in KINDS; writing to them changes the engine
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]


def pieces(engine: Engine) -> list[Piece]:
    """This rank's pieces; those of all data ranks together are every parameter, once.

    Moments are zeros before the first step.
    """
    _make_states(engine)
    find = _of_stage_3 if engine.grid.layout.zero == 3 else _of_stages_1_and_2
    found = (find(name, parameter) for name, parameter in engine.parameters())
    return [piece for piece in found if piece is not None and len(piece.tensors["weight"])]


def loaded(engine: Engine, step: int) -> None:
    """To be called when other numbers were put into the pieces, of `step` optimizer steps: what the
    model computes with follows them. A collective over the data ranks."""
    wrapped: Any = engine.deepspeed.optimizer
    if engine.grid.layout.zero == 3:
        # Stage 3 computes with its own partitions, which nothing else refreshes from the masters,
        # and with whole copies of small parameters, which it keeps from one step to the next.
        small = list(wrapped.persistent_parameters)
        if small:
            small[0].partition(small)
        for group in range(len(wrapped.fp32_partitioned_groups_flat)):
            wrapped._reassign_or_swap_out_partitioned_parameters(group)
        if small:
            small[0].all_gather(small)
    else:
        _spread(wrapped)
    for partition in _partitions(engine):
        engine.optimizer.state[partition]["step"].fill_(float(step))


def reset(engine: Engine, dtype: torch.dtype) -> None:
    """Puts back what a new engine of `dtype` has: initial weights, and no moments; a collective
    over the data ranks. Layers are built again, one after the other."""
    found = {piece.name: piece for piece in pieces(engine)}
    own: Sequence[StageLayer] = getattr(engine.model, "local_layers", engine.layers)
    for name, layer in {name_of(engine.layers, layer): layer for layer in reversed(own)}.items():
        for local, value in layer.build().named_parameters():
            piece = found.get(f"{name}.{local}")
            if piece is not None:
                weight = piece.tensors["weight"]
                flat = value.detach().to(dtype).flatten()
                weight.copy_(flat[piece.start : piece.start + len(weight)])
                for kind in KINDS[1:]:
                    piece.tensors[kind].zero_()
    loaded(engine, 0)


def pass_over(engine: Engine) -> None:
    """Counts an optimizer step that is not made, so that counting goes by steps of the run."""
    _make_states(engine)
    for partition in _partitions(engine):
        engine.optimizer.state[partition]["step"] += 1


def _spread(wrapped: Any) -> None:
    """Gives all data ranks the parameters of the masters of each, in place.

    DeepSpeed's own way gathers them into memory of their size beside them.
    """
    bf16 = hasattr(wrapped, "bf16_partitioned_groups")
    rounded = wrapped.bf16_partitioned_groups if bf16 else wrapped.parallel_partitioned_bit16_groups
    masters = _flat_masters(wrapped)
    for parts, own, group in zip(rounded, masters, wrapped.real_dp_process_group, strict=True):
        parts[dist.get_rank(group)].data.copy_(own.data)
        for number, part in enumerate(parts):
            for start in range(0, len(part), SPREAD):
                source = dist.get_global_rank(group, number)
                dist.broadcast(part.data[start : start + SPREAD], source, group=group)


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


def _of_stages_1_and_2(name: str, parameter: Any) -> Piece | None:
    mapping = parameter._hp_mapping  # None: this data rank's partition has nothing of it
    if mapping is None:
        return None
    tensors = {"weight": mapping.hp_fragment} | {k: mapping.optim_fragment[k] for k in KINDS[1:]}
    start = mapping.lp_fragment_address.start
    return Piece(name, parameter, tuple(parameter.shape), start, _detached(tensors))


def _of_stage_3(name: str, parameter: Any) -> Piece | None:
    wrapped = parameter._z3_optimizer
    tensors = {"weight": wrapped.get_local_fp32_param(parameter)}
    tensors |= {kind: wrapped.get_local_fp32_param(parameter, kind) for kind in KINDS[1:]}
    size = len(tensors["weight"])
    start = size * wrapped._get_param_partition_rank(parameter)
    real = max(0, min(size, parameter.ds_numel - start))  # the last partitions are padded
    tensors = {kind: tensor[:real] for kind, tensor in tensors.items()}
    return Piece(name, parameter, tuple(parameter.ds_shape), start, _detached(tensors))


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {kind: tensor.detach() for kind, tensor in tensors.items()}


def _partitions(engine: Engine) -> list[Tensor]:
    """The flat fp32 tensors that the optimizer steps on, on this data rank."""
    return _flat_masters(engine.deepspeed.optimizer)


def _flat_masters(wrapped: Any) -> list[Tensor]:
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
