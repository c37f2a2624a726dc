"""Initial weights, keyed by name: every layout starts from the same ones."""

from collections.abc import Iterable

from torch import nn

from mlm.model.config import ModelConfig
from parallel.groups import group_rank
from parallel.random import normal_
from parallel.sharding import group_of


def initialise(
    module: nn.Module,
    name: str,
    config: ModelConfig,
    seed: int,
    filled: Iterable[nn.Parameter] = (),
) -> nn.Module:
    """Fills the parameters of `module`, which begin with `name` in a checkpoint, and returns it.

    Weights are from N(0, initializer_range^2), biases 0, norms 1 and 0, the padding rows 0. What
    is on the meta device stays there, and what is among `filled` stays as it is.
    """
    known = {id(parameter) for parameter in filled}
    for local, parameter in module.named_parameters():
        if not parameter.is_meta and id(parameter) not in known:
            _fill(f"{name}.{local}" if name else local, parameter, config, seed)
    return module


def _fill(name: str, parameter: nn.Parameter, config: ModelConfig, seed: int) -> None:
    if name.endswith("bias"):
        nn.init.zeros_(parameter)
    elif "norm" in name.lower().rsplit(".", 2)[-2]:
        nn.init.ones_(parameter)
    else:
        normal_(parameter, config.initializer_range, seed, name)
    if name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
        row = config.pad_token_id - group_rank(group_of(parameter)) * parameter.shape[0]
        if 0 <= row < parameter.shape[0]:
            parameter.data[row].zero_()
