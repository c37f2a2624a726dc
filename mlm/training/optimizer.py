"""AdamW with decay groups chosen by name."""

from collections.abc import Sequence

import torch
from torch import nn

from mlm.config import OptimConfig


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter: to all but biases and layer norms.

    By name and never by `ndim`: ZeRO-3 keeps every parameter as one dimension.
    """
    leaf = name.rsplit(".", 2)[-2:]
    return leaf[-1] != "bias" and "norm" not in leaf[0].lower()


def make_adamw(
    named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over named parameters, in two groups.

    fused: one kernel. On a CPU it rounds the tail of a tensor differently, so that results depend
    on an element's position; without it they do not.
    """
    groups = [
        {"params": [p for n, p in named if decays(n)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )
