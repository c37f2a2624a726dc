"""What the layers of an encoder are built with, chosen once for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from parallel.tensor.region import TENSOR_REGION, Region


@dataclass(frozen=True)
class LayerOptions:
    """The defaults are those of pretraining.

    attention: the name of a kernel (`mlm.model.kernels.KERNELS`), or `auto`
    causal: whether batches must be causal: a token attends to itself and earlier ones only
    activation: in place of the one that `hidden_act` names
    region: how attention and feed-forward enter and leave their tensor-parallel parts
    """

    attention: str = "auto"
    positions: Literal["absolute", "relative_key", "relative_key_query"] = "absolute"
    cross_attention: bool = False
    causal: bool = False
    activation: Callable[[Any], Any] | None = None
    region: Region = TENSOR_REGION


PRETRAINING = LayerOptions()
