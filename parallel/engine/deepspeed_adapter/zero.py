"""The optimizers that DeepSpeed wraps around ours: where each keeps gradients, masters and moments.

DeepSpeed's own checkpoints resume only the layout that wrote them. Here each rank's part of the
state is seen as pieces of parameters under layout-free names: views of the flat fp32 tensors that
the optimizer steps on, so that no rank holds more than its own.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.engine.deepspeed_adapter import expected
from parallel.engine.interface import KINDS, Piece

BROADCAST_ELEMENTS = 1 << 22  # sent at once


class ZeroOptimizer(ABC):
    """One of DeepSpeed's wrapped optimizers.

    wrapped: DeepSpeed's; inner: the optimizer that steps on the flat fp32 partitions
    """

    names: ClassVar[tuple[str, ...]]  # attributes of `wrapped`
    parameter_names: ClassVar[tuple[str, ...]] = expected.PARAMETER_ZERO_1_AND_2

    def __init__(self, wrapped: Any, inner: torch.optim.Optimizer) -> None:
        expected.expect(wrapped, self.names)
        self.wrapped, self.inner = wrapped, inner

    @property
    def overflow(self) -> bool:
        """Whether the last step was skipped because its norm was not finite."""
        return bool(self.wrapped.overflow)

    @property
    def grad_norm(self) -> float:
        """Of the step whose gradients are complete, before clipping."""
        expected.expect(self.wrapped, ("_global_grad_norm",))  # not there before the first step
        return float(self.wrapped._global_grad_norm)

    @abstractmethod
    def masters(self) -> list[Tensor]:
        """The flat fp32 tensors that `inner` steps on, on this data rank."""

    @abstractmethod
    def rounded(self) -> list[Tensor]:
        """The same parts of the weights, as the model computes with them."""

    def share_masters(self) -> None:
        """Makes the masters of fp32 weights the weights themselves, of which DeepSpeed has made a
        copy: a quarter of what ZeRO-3 needs."""
        for master, weights in zip(self.masters(), self.rounded(), strict=True):
            assert master.dtype == weights.dtype, (master.dtype, weights.dtype)
            master.data = weights.data

    @abstractmethod
    def piece(self, name: str, parameter: Any) -> Piece | None:
        """What this data rank holds of a parameter; None: nothing."""

    @abstractmethod
    def weights_follow_masters(self) -> None:
        """Gives the weights the numbers of the masters; a collective over the data ranks."""

    def gradients(self) -> list[Tensor]:
        """The gradients of a step that this rank has, reduced and not yet clipped."""
        groups = self.wrapped.averaged_gradients.values()
        return [gradient for group in groups for gradient in group or () if gradient is not None]

    def make_moments(self) -> None:
        """Makes Adam's state where a first step would, and links it to the parameters."""
        for master in self.masters():
            state = self.inner.state[master]
            if "exp_avg" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
                state["exp_avg"] = torch.zeros_like(master)
                state["exp_avg_sq"] = torch.zeros_like(master)
        self._link_moments()

    def set_step(self, step: int) -> None:
        """Makes the optimizer count from `step`."""
        for master in self.masters():
            self.inner.state[master]["step"].fill_(float(step))

    def skip_step(self) -> None:
        self.make_moments()
        for master in self.masters():
            self.inner.state[master]["step"] += 1

    @abstractmethod
    def _link_moments(self) -> None:
        """Shows parameters where their moments are."""


class _FlatGroups(ZeroOptimizer):
    """Stages 1 and 2: masters are partitions of flat groups, and weights are whole on each rank."""

    @abstractmethod
    def _partitions(self) -> list[list[Tensor]]:
        """By group, the weights of each data rank's partition, as the model computes with them."""

    def rounded(self) -> list[Tensor]:
        groups = zip(self._partitions(), self.wrapped.real_dp_process_group, strict=True)
        return [partitions[dist.get_rank(group)] for partitions, group in groups]

    def share_masters(self) -> None:
        super().share_masters()
        self.wrapped._link_all_hp_params()  # by views of the masters that were

    def piece(self, name: str, parameter: Any) -> Piece | None:
        expected.expect(parameter, self.parameter_names)
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        tensors = {"weight": mapping.hp_fragment}
        tensors |= {kind: mapping.optim_fragment[kind] for kind in KINDS[1:]}
        start = mapping.lp_fragment_address.start
        return Piece(name, parameter, tuple(parameter.shape), start, _detached(tensors))

    def weights_follow_masters(self) -> None:
        """In place: DeepSpeed's own way gathers the weights into memory of their size."""
        groups = zip(
            self._partitions(), self.masters(), self.wrapped.real_dp_process_group, strict=True
        )
        for partitions, master, group in groups:
            partitions[dist.get_rank(group)].data.copy_(master.data)
            for number, partition in enumerate(partitions):
                source = dist.get_global_rank(group, number)
                for part in partition.data.split(BROADCAST_ELEMENTS):
                    dist.broadcast(part, source, group=group)

    def _link_moments(self) -> None:
        # DeepSpeed links after the step of the first parameter group, when the others have none.
        self.wrapped._hp_optimizer_states_linked = False
        self.wrapped._lazy_init_hp_params_optimizer_state()


class Zero1Bf16(_FlatGroups):
    """DeepSpeed's BF16_Optimizer: stage 1 of a pipeline engine in bf16."""

    names = expected.ZERO_1_BF16

    def masters(self) -> list[Tensor]:
        return list(self.wrapped.fp32_groups_flat_partition)

    def gradients(self) -> list[Tensor]:
        return list(self.wrapped.fp32_groups_gradients_flat)

    def _partitions(self) -> list[list[Tensor]]:
        return self.wrapped.bf16_partitioned_groups


class Zero1And2(_FlatGroups):
    """DeepSpeed's DeepSpeedZeroOptimizer: stage 1 in fp32, and stage 2."""

    names = expected.ZERO_1_AND_2

    def masters(self) -> list[Tensor]:
        return list(self.wrapped.single_partition_of_fp32_groups)

    def take_part_in_norms(self, stages: dist.ProcessGroup) -> None:
        """Lets a stage with fewer parameter groups than another take part in all reductions of the
        gradient norm, of which DeepSpeed makes one for each group: a stage that has the embeddings
        alone has nothing that is not decayed, and the others would wait for it. A collective."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        wrapped, counts = self.wrapped, [0] * dist.get_world_size(stages)
        own = len(self.masters())
        dist.all_gather_object(counts, own, group=stages)
        if own == max(counts):
            return

        def scaled_global_norm(norm_type: int = 2) -> Any:
            parts = [
                (wrapped.averaged_gradients[i], wrapped.params_in_partition[i]) for i in range(own)
            ]
            parts += [([], [])] * (max(counts) - own)
            norms = [wrapped.get_grad_norm_direct(*part) for part in parts]
            return combine_grad_norm_groups(norms, norm_type=norm_type)

        wrapped.scaled_global_norm = scaled_global_norm

    def _partitions(self) -> list[list[Tensor]]:
        return self.wrapped.parallel_partitioned_bit16_groups


class Zero3(ZeroOptimizer):
    """DeepSpeed's stage 3: weights are partitions, gathered for the time that they are used."""

    names = expected.ZERO_3
    parameter_names = expected.PARAMETER_ZERO_3

    def masters(self) -> list[Tensor]:
        return list(self.wrapped.fp32_partitioned_groups_flat)

    def rounded(self) -> list[Tensor]:
        return list(self.wrapped.fp16_partitioned_groups_flat)

    def piece(self, name: str, parameter: Any) -> Piece | None:
        expected.expect(parameter, self.parameter_names)
        wrapped = parameter._z3_optimizer
        tensors = {"weight": wrapped.get_local_fp32_param(parameter)}
        tensors |= {kind: wrapped.get_local_fp32_param(parameter, kind) for kind in KINDS[1:]}
        size = len(tensors["weight"])
        start = size * wrapped._get_param_partition_rank(parameter)
        real = max(0, min(size, parameter.ds_numel - start))  # the last partitions are padded
        tensors = {kind: tensor[:real] for kind, tensor in tensors.items()}
        return Piece(name, parameter, tuple(parameter.ds_shape), start, _detached(tensors))

    def weights_follow_masters(self) -> None:
        # Stage 3 computes with its own partitions, which nothing else refreshes from the masters,
        # and with whole copies of small parameters, which it keeps from one step to the next.
        small = list(self.wrapped.persistent_parameters)
        if small:
            small[0].partition(small)
        for group in range(len(self.masters())):
            self.wrapped._reassign_or_swap_out_partitioned_parameters(group)
        if small:
            small[0].all_gather(small)

    def _link_moments(self) -> None:
        """Stage 3 finds them by itself."""


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {kind: tensor.detach() for kind, tensor in tensors.items()}
