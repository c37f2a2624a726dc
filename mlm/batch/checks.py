"""Whether the values of a tensor that a user gave are checked."""

import os

import torch
from torch import Tensor

VARIABLE = "POLYMLM_CHECK"


def traced_by_jit() -> bool:
    """Whether `torch.jit.trace` records this pass."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def traced() -> bool:
    """Whether this pass is recorded, for other values than those that are given now: by
    `torch.compile`, `torch.export`, `torch.jit.trace`, or a dispatch mode such as fake tensors."""
    return (
        torch.compiler.is_compiling() or traced_by_jit() or torch._C._len_torch_dispatch_stack() > 0
    )


def values_checked(given: Tensor) -> bool:
    """Always on a CPU. On another device reading one value waits for all work before it, so there
    values are checked only where the environment has POLYMLM_CHECK=1; shapes always are. A pass
    that is recorded reads no value."""
    if traced():
        return False
    return given.device.type == "cpu" or os.environ.get(VARIABLE) == "1"
