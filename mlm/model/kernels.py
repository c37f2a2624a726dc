"""The kernels that compute attention, in one table, and the choice among them.

A kernel from outside is an entry of `KERNELS`, made before a model is built; `attention=NAME`
chooses it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mlm.batch.checks import traced_by_jit
from mlm.batch.visibility import Visibility
from mlm.model.relative import RelativePositions
from parallel.random import dropout

Ability = Literal["relative positions", "attention weights", "head masks", "fully masked rows"]
ALL: frozenset[Ability] = frozenset(
    ("relative positions", "attention weights", "head masks", "fully masked rows")
)


@dataclass(frozen=True, eq=False)
class Call:
    """What one attention is to compute, and so all that the choice of a kernel depends on.

    query: (batch, heads, queries, head_size); keys, values: (batch, heads, keys, head_size)
    visibility: what may be attended to
    probability: of dropping an attention weight; dropout_key: of the mask of these heads, None:
        from torch's generator
    positions: what is added to the scores by distance, or None
    head_factors: (heads,), what the weights of each head are multiplied by, or None
    weights: whether the weights are wanted, too
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    visibility: Visibility
    probability: float = 0.0
    dropout_key: int | None = 0
    positions: RelativePositions | None = None
    head_factors: Tensor | None = None
    weights: bool = False

    @property
    def needs(self) -> set[Any]:
        """The abilities beyond plain attention that a kernel must have for it."""
        needed: dict[Ability, bool] = {
            "relative positions": self.positions is not None,
            "attention weights": self.weights,
            "head masks": self.head_factors is not None,
            "fully masked rows": self.visibility.has_masked_rows is True,
        }
        return {ability for ability, is_needed in needed.items() if is_needed}

    @property
    def prefers(self) -> set[Any]:
        """What it needs, or would where rows turn out to be fully masked: `fused` gives these the
        right outputs, but no gradients of their scores. On a GPU a matrix of weights is too dear
        for that."""
        if self.visibility.has_masked_rows is not None or self.query.device.type != "cpu":
            return self.needs
        trained = torch.is_grad_enabled() and self.query.requires_grad
        if not trained or traced_by_jit():  # which records a pass for both
            return self.needs
        return self.needs.union({"fully masked rows"})


@dataclass(frozen=True)
class Kernel:
    """run: gives (batch, heads, queries, head_size), and the weights (batch, heads, queries, keys)
    where it has them, else None
    abilities: of what a call may need, what it can do
    otherwise: the kernel that runs a call that needs more; None: such a call is refused
    devices: the types of devices that it runs on; None: all
    keyed_dropout: whether its dropout follows `dropout_key`; without, a run with dropout is equal
        only to others of the same layout
    """

    run: Callable[[Call], tuple[Tensor, Tensor | None]]
    abilities: frozenset[Ability] = frozenset()
    otherwise: str | None = None
    devices: tuple[str, ...] | None = None
    keyed_dropout: bool = True


def attention_weights(
    query: Tensor,
    keys: Tensor,
    visibility: Visibility,
    positions: RelativePositions | None = None,
) -> Tensor:
    """`softmax((Q K^T + relative positions) / sqrt(d))`; softmax in fp32.

    query, keys: (batch, heads, length, head_size)
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    query = query * scale
    scores = query @ keys.transpose(-1, -2)
    if positions is not None:
        scores = scores + positions(query, keys, scale)
    if visibility.has_masked_rows is not False:
        added = visibility.added(scores.dtype)
        if added is not None:
            # Sums below the least number, which fp16 has, must not become -inf: a row of them
            # would have no softmax.
            scores = (scores + added).clamp(min=torch.finfo(scores.dtype).min)
    elif visibility.allowed is not None:
        scores = scores.masked_fill(~visibility.allowed, float("-inf"))
    return scores.softmax(dim=-1)  # a bf16 softmax is fp32 inside


def unfused(call: Call) -> tuple[Tensor, Tensor]:
    """Plain products, with the matrix of weights in memory."""
    weights = attention_weights(call.query, call.keys, call.visibility, call.positions)
    weights = dropout(weights, call.probability, call.dropout_key)
    if call.head_factors is not None:
        weights = weights * call.head_factors[:, None, None]
    return weights @ call.values, weights


def fused(call: Call) -> tuple[Tensor, None]:
    """PyTorch's own kernel, which keeps no matrix of weights."""
    query, allowed = call.query, call.visibility.allowed
    if allowed is not None and call.visibility.has_masked_rows is None:
        # Its backward pass is wrong where a query may attend to no key. Such a query attends to all
        # keys alike here, by scores of 0.
        masked_rows = ~allowed.any(dim=-1, keepdim=True)
        query, allowed = query.masked_fill(masked_rows, 0.0), allowed | masked_rows
    mixed = F.scaled_dot_product_attention(
        query, call.keys, call.values, attn_mask=allowed, dropout_p=call.probability
    )
    return mixed, None


KERNELS: dict[str, Kernel] = {
    "unfused": Kernel(unfused, ALL),
    "fused": Kernel(fused, otherwise="unfused", keyed_dropout=False),
}


def check_name(requested: str) -> None:
    """Raises ValueError unless it is `auto` or a kernel of the table."""
    if requested != "auto" and requested not in KERNELS:
        raise ValueError(
            f"attention={requested!r} is not a kernel; choose from auto, {', '.join(KERNELS)}"
        )


def choose(requested: str, call: Call) -> Kernel:
    """The kernel that runs a call: the one place where this is decided.

    auto: on CUDA `fused`, which is faster there and keeps no matrix of weights. On a CPU `fused`
    only in fp32 without dropout, since its backward pass in bf16 and its dropout are slower there
    than plain products.

    A kernel that lacks what the call needs gives it to its `otherwise` (`fused` to `unfused`, which
    computes the same); without one, and on a device it does not run on, raises ValueError.
    """
    device, name = call.query.device.type, requested
    if requested == "auto":
        plain = call.query.dtype == torch.float32 and not call.probability
        name = "fused" if device == "cuda" or plain else "unfused"
    kernel = KERNELS[name]
    missing = call.needs - kernel.abilities
    if kernel.devices is not None and device not in kernel.devices:
        raise ValueError(
            f"attention={requested} runs on {', '.join(kernel.devices)}, not on {device}; choose "
            f"auto"
        )
    if not missing and (kernel.otherwise is None or call.prefers <= kernel.abilities):
        return kernel
    if kernel.otherwise is None:
        raise ValueError(
            f"attention={requested} does not support {', '.join(sorted(missing))}; choose auto"
        )
    return choose(kernel.otherwise, call)
