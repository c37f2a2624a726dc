"""What every model of the family is: a config, a group, weights with a seed, a key per pass."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlm.batch.checks import traced
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.joining import JoiningModel
from mlm.family.outputs import ModelOutput
from mlm.model.initial import initialise
from parallel.groups import Group

KEYS = 2**62


class FamilyModel(JoiningModel):
    """A model over the tensor-parallel ranks of `group`, or on this process alone.

    A subclass makes its modules between `super().__init__` and `finish`.
    """

    base_model_prefix = "roberta"
    config_class = XLMRobertaXLConfig

    def __init__(self, config: XLMRobertaXLConfig, group: Group):
        nn.Module.__init__(self)  # that of transformers would ask for its own config
        config.shape()  # refuses what does not fit before anything is allocated
        self.config, self.group = config, group
        self.gradient_checkpointing = config.gradient_checkpointing

    def drawn_seed(self, seed: int | None) -> int:
        """`seed`, or one from torch's generator, the same on every rank of the group."""
        return _drawn(self.group, self.group_device()) if seed is None else seed

    def finish(self, seed: int | None) -> None:
        """Gives the parameters their initial weights; those on the meta device get none."""
        if not all(parameter.is_meta for parameter in self.parameters()):
            base = getattr(self, self.base_model_prefix, None)
            prefix = "" if base is not None else self.base_model_prefix
            filled = () if base is None else base.parameters()  # by its own call of this
            initialise(self, prefix, self.config.shape(), self.drawn_seed(seed), filled)

    def tie_weights(self) -> None:
        """Makes tied parameters one again, after they were replaced; here there are none."""

    def returned(self, out: ModelOutput, return_dict: bool | None) -> Any:
        """What a pass returns, an object or a tuple: as it is asked, or else as the config says."""
        as_object = self.config.return_dict if return_dict is None else return_dict
        return out if as_object else out.to_tuple()

    def dropout_key(self) -> int | None:
        """The key of this pass's dropout masks, drawn from torch's generator where any drops; None
        in a recorded pass of one process, where that generator draws the masks themselves."""
        if self.group is None and traced():
            return None
        return _drawn(self.group, self.group_device()) if self.training else 0

    def group_device(self) -> torch.device:
        """Where a tensor must lie to be sent over the group."""
        if self.group is None or dist.get_backend(self.group) == "gloo":
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())


def _drawn(group: Group, device: torch.device) -> int:
    drawn: Tensor = torch.randint(KEYS, (), device="cpu")  # where torch makes others, too
    if group is not None:
        drawn = drawn.to(device)
        dist.broadcast(drawn, dist.get_global_rank(group, 0), group=group)
    return int(drawn)
