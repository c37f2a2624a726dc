"""A model as one ordered list of layers, and its cut into pipeline stages."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class StageLayer:
    """One entry of the list that both the plain and the pipelined model are made from.

    A layer is called as `module(x, batch)`, `x` being what the layer before gave (the batch's
    `inputs` for the first one), and gives the next `x`; the last layer gives the loss, a scalar.
    Between stages `x` must be one float tensor; inside a stage it may be anything.
    """

    name: str  # what its parameters' names begin with in a checkpoint
    build: Callable[[], nn.Module]  # makes the module with its initial weights
    parameters: int
    flops: float  # of a forward pass of one sequence
    forward: Callable[[Any, Any, Any], Any] | None = None  # (module, x, batch), not its own forward
    tied: str | None = None  # layers of one key share a module (or a copy of it on another stage)
    joined: bool = False  # stays on the stage of the layer before it
    recompute: bool = False  # may be run again in the backward pass instead of being remembered


def balance(layers: Sequence[StageLayer], stages: int) -> list[int]:
    """Cuts `layers` into `stages` runs whose heaviest is as light as can be.

    The weight of a run is its share of the FLOPs plus its share of the parameters, so neither
    the time nor the memory of a stage stands out; embedding and head count like any layer.
    Returns the `stages + 1` bounds. Raises ValueError with more stages than can be cut.
    """
    flops = sum(layer.flops for layer in layers) or 1.0
    parameters = sum(layer.parameters for layer in layers) or 1
    cuts = [i for i, layer in enumerate(layers) if not layer.joined] + [len(layers)]
    weights = [
        sum(layer.flops / flops + layer.parameters / parameters for layer in layers[start:stop])
        for start, stop in itertools.pairwise(cuts)
    ]
    if stages > len(weights):
        raise ValueError(f"{stages} stages cannot be cut from {len(weights)} layers")

    @cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        if left == 1:
            return sum(weights[first:]), (len(weights),)
        options = []
        for stop in range(first + 1, len(weights) - left + 2):
            rest, bounds = best(stop, left - 1)
            options.append((max(sum(weights[first:stop]), rest), (stop, *bounds)))
        return min(options)

    return [0] + [cuts[bound] for bound in best(0, stages)[1]]


def run_layers(layers, modules, x, batch, recompute: bool) -> Any:
    """Runs `x` through layers; with `recompute`, those that allow it keep only their input.

    The batch is captured by each recomputed call, so what it holds (dropout keys, lengths) is
    that of its own micro-batch however many others have gone through the stage since.
    """
    from torch.utils.checkpoint import checkpoint

    for layer, module in zip(layers, modules, strict=True):
        if recompute and layer.recompute and isinstance(x, Tensor) and x.requires_grad:
            # Only fused attention dropout on CUDA draws from the generator; all else is keyed.
            x = checkpoint(
                module, x, batch, use_reentrant=False, preserve_rng_state=x.device.type != "cpu"
            )
        else:
            x = module(x, batch)
    return x


def name_of(layers: Sequence[StageLayer], layer: StageLayer) -> str:
    """What the names of a layer's parameters begin with in a checkpoint: of tied layers, the name
    of the first."""
    if layer.tied is None:
        return layer.name
    return next(each.name for each in layers if each.tied == layer.tied)


def canonical_name(layers: Sequence[StageLayer], local_name: str) -> str:
    """The checkpoint name of a parameter of a `WholeModel` or of a stage.

    Local names are `<index>.<rest>`, or `tied_modules.<key>.<rest>` for tied layers.
    """
    head, rest = local_name.split(".", 1)
    if head == "tied_modules":
        key, rest = rest.split(".", 1)
        return next(layer.name for layer in layers if layer.tied == key) + "." + rest
    return layers[int(head)].name + "." + rest


class WholeModel(nn.Module):
    """All layers on one process, under the same local names as a pipeline stage gives them."""

    def __init__(self, layers: Sequence[StageLayer], recompute: bool = False):
        super().__init__()
        self.layer_list, self.recompute = list(layers), recompute
        self.tied_modules = nn.ModuleDict()
        self.calls: list[Callable] = []
        for index, layer in enumerate(layers):
            if layer.tied is None:
                module = layer.build()
                self.add_module(str(index), module)
            else:
                if layer.tied not in self.tied_modules:
                    self.tied_modules[layer.tied] = layer.build()
                module = self.tied_modules[layer.tied]
            self.calls.append(bind(layer, module))

    def forward(self, x: Any, batch: Any) -> Any:
        return run_layers(self.layer_list, self.calls, x, batch, self.recompute and self.training)


def bind(layer: StageLayer, module: nn.Module) -> Callable:
    """What a layer calls: the module, or its `forward` with the module as the first argument."""
    if layer.forward is None:
        return module
    forward = layer.forward
    return lambda x, batch: forward(module, x, batch)
