"""DeepSpeed's pipeline module over our list of layers."""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads
from torch import nn

from parallel.groups import Group
from parallel.pipeline.stages import StageLayer, bind, run_layers


class _Spec(LayerSpec):
    """A layer that DeepSpeed builds by our own function."""

    def __init__(self, layer: StageLayer):
        super().__init__(nn.Module)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class _TiedSpec(TiedLayerSpec):
    """The same for a layer whose weight another stage has a copy of."""

    def __init__(self, layer: StageLayer):
        super().__init__(layer.tied, nn.Module, tied_weight_attr="weight")
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class PipelineStages(PipelineModule):
    """The stage of this rank.

    Only the hidden state crosses from stage to stage: whatever else a layer needs of a
    micro-batch (lengths, masked positions, targets, the dropout key) reaches every stage with
    `batches`, in the order in which the schedule runs their forward passes.
    """

    def __init__(
        self, layers: Sequence[StageLayer], bounds: Sequence[int], topology: Any, recompute: bool
    ):
        self.parts = list(bounds)
        self.layer_list, self.recompute = list(layers), recompute
        self.batches: Iterator[Any] = iter(())
        specs = [_Spec(layer) if layer.tied is None else _TiedSpec(layer) for layer in layers]
        with redirect_stdout(io.StringIO()):  # it prints its seeds
            super().__init__(specs, topology=topology)
        self.local_layers = self.layer_list[self._local_start : self._local_stop]
        self.calls = [
            bind(layer, module)
            for layer, module in zip(self.local_layers, self.forward_funcs, strict=True)
        ]

    def _partition_layers(self, method: str = "") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    def forward(self, forward_input: Any) -> Any:
        batch = next(self.batches)
        recompute = self.recompute and self.training
        return run_layers(self.local_layers, self.calls, forward_input, batch, recompute)


def keep_tied_copies_equal(engine: Any, dp: Group) -> None:
    """Makes a pipeline engine give all copies of a tied weight the same gradient, bit for bit.

    DeepSpeed adds a tied gradient up over its stages and then, in a buffer with the others, over
    the data ranks. The order of that sum depends on the place in the buffer, which no two stages
    have in common; from three ranks on it changes the sum, and the copies drift apart (measured:
    from the first step). Here the data ranks' sum comes first, and is then that of the first of
    them, while the others have zeros.
    """
    if dp is None or dist.get_world_size(dp) < 3:
        return
    over_stages = engine._INSTRUCTION_MAP[ReduceTiedGrads]

    def over_data_ranks_first(self: Any) -> None:
        for weight, _ in self.module.get_tied_weights_and_groups():
            gradient = weight._hp_grad if self.using_bf16_optimizer else weight.grad
            dist.reduce(gradient, group_dst=0, group=dp)
            if dist.get_rank(dp) != 0:
                gradient.zero_()
        over_stages(self)

    engine._INSTRUCTION_MAP = {**engine._INSTRUCTION_MAP, ReduceTiedGrads: over_data_ranks_first}
