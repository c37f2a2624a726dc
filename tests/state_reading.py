"""Parameters of an engine as DeepSpeed itself gathers them, not as a checkpoint sees them."""

from collections.abc import Iterator

from torch import Tensor, nn

from parallel.engine.interface import Engine


def whole_weights(engine: Engine) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Name, parameter and fp32 master of this rank's tensor-parallel slice; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.named_parameters():
        value = safe_get_full_fp32_param(parameter)
        assert value is not None
        yield name, parameter, value.detach()
