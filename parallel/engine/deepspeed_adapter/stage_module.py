"""DeepSpeed's pipeline module over our list of layers."""

import io
import itertools
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import nn

from parallel.engine.deepspeed_adapter import expected
from parallel.engine.interface import Outputs
from parallel.pipeline.cut import Runs
from parallel.pipeline.stages import StageLayer, bind, run_layers


class _Spec(LayerSpec):
    """A layer that DeepSpeed builds by our own function."""

    def __init__(self, layer: StageLayer) -> None:
        super().__init__(nn.Module)
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class _TiedSpec(TiedLayerSpec):
    """The same for a layer whose weight another stage has a copy of."""

    def __init__(self, layer: StageLayer) -> None:
        super().__init__(layer.tied, nn.Module, tied_weight_attr="weight")
        self.layer = layer

    def build(self, log: bool = False) -> nn.Module:
        return self.layer.build()


class StageModule(PipelineModule):
    """The layers of this rank's stage, in one or several runs.

    Only the hidden state crosses from stage to stage: whatever else a layer needs of a micro-batch
    (lengths, masked positions, targets, the dropout key) is in `batches`, on every stage. Before a
    forward pass the engine sets `number`, the micro-batch to run; the outputs of the last layer are
    then in `outputs`, by micro-batch number. `run` is the index of the run of layers to compute: 0
    in the schedules of DeepSpeed, which have one run per stage.

    stages: the runs of every stage, as `cut` gives them
    """

    def __init__(
        self, layers: Sequence[StageLayer], stages: Sequence[Runs], topology: Any, recompute: bool
    ) -> None:
        # DeepSpeed wants one contiguous run per stage: it gets the layers stage by stage, and
        # parameters are numbered in that order.
        self.ordered = [layers[i] for runs in stages for run in runs for i in run]
        sizes = [sum(map(len, runs)) for runs in stages]
        self.parts = [0, *itertools.accumulate(sizes)]
        self.recompute = recompute
        self.batches: Sequence[Any] = ()
        self.outputs: dict[int, Outputs] = {}
        self.number = self.run = 0
        specs = [_Spec(layer) if layer.tied is None else _TiedSpec(layer) for layer in self.ordered]
        with redirect_stdout(io.StringIO()):  # it prints its seeds
            super().__init__(specs, topology=topology)
        expected.expect(self, expected.PIPELINE_MODULE)
        stage = self._topo.get_coord(self.global_rank).pipe
        self.local_layers = self.ordered[self.parts[stage] : self.parts[stage + 1]]
        calls = zip(self.local_layers, self.forward_funcs, strict=True)
        bound = iter([bind(layer, module) for layer, module in calls])
        self.calls = [list(itertools.islice(bound, len(run))) for run in stages[stage]]
        held = iter(self.local_layers)
        self.runs = [list(itertools.islice(held, len(run))) for run in stages[stage]]
        self.last = self.parts[stage + 1] == len(self.ordered)  # holds the last layer of the model

    def _partition_layers(self, method: str = "") -> None:
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    def forward(self, forward_input: Any) -> Any:
        layers, calls = self.runs[self.run], self.calls[self.run]
        recompute = self.recompute and self.training
        batch = self.batches[self.number]
        x = run_layers(layers, calls, forward_input, batch, recompute)
        if self.last and self.run == len(self.runs) - 1:
            x, self.outputs[self.number] = x
        return x
