"""The state of a run: its newest checkpoint, and parameters as DeepSpeed itself gathers them."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from mlm import checkpoint
from parallel.engine.interface import Engine


def newest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run that has one."""
    newest = checkpoint.newest(run)
    assert newest is not None
    return newest


def whole_weights(engine: Engine) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Name, parameter and fp32 master of this rank's tensor-parallel slice; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.named_parameters():
        value = safe_get_full_fp32_param(parameter)
        assert value is not None
        yield name, parameter, value.detach()
