"""A model as one ordered list of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class StageLayer:
    """One entry of the list that both the plain and the pipelined model are made from.

    A layer is called as `module(x, batch)`, where `x` is the result of the layer before it (for the
    first one, the batch's `inputs`), and returns the next `x`. The last layer returns `(loss,
    outputs)`: a scalar, and a dict of tensors that the engine hands back. Between stages `x` is one
    float tensor; inside a stage it may be anything.
    """

    name: str  # what its parameters' names begin with in a checkpoint
    build: Callable[[], nn.Module]  # makes the module with its initial weights
    parameters: int
    flops: float  # of a forward pass of one sequence
    forward: Callable[[Any, Any, Any], Any] | None = None  # (module, x, batch), not its own forward
    tied: str | None = None  # layers of one key share a module (or a copy of it on another stage)
    joined: bool = False  # must be on the stage of the layer before it
    recompute: bool = False  # may be run again in the backward pass instead of being remembered


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
