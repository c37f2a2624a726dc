"""A micro-batch of a task that is trained on labels."""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from mlm.batch.visibility import Visibility, masked_by


@dataclass(frozen=True)
class LabelledBatch:
    """A micro-batch of a task; in a pipeline all have one shape.

    input_ids: (rows, seq_len) int64; with `choices`, the choices of an example are rows in turn
    labels: as the head's class takes them; of question answering (rows, 2), start and end
    attention_mask: (rows, seq_len) or (rows, seq_len, seq_len), 1 where a token may be attended to;
        None: all ones
    token_type_ids: (rows, seq_len); None: all 0
    causal: whether a token attends to itself and earlier ones only, as the model does
    loss_scale: what the mean of the losses is multiplied by
    dropout_key: a key (seed, step, micro-batch) that every dropout mask is derived from

    Make it on the CPU and move it with `to`: the values of its mask are checked there, once.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    choices: int = 1
    loss_scale: float = 1.0
    dropout_key: int = 0
    causal: bool = False
    visibility: Visibility = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rows, length = self.input_ids.shape
        shape, device = (rows, length, length), self.input_ids.device
        made = masked_by("attention_mask", self.attention_mask, shape, self.causal, device)
        object.__setattr__(self, "visibility", made)

    @property
    def inputs(self) -> Tensor:
        """The input of the first layer."""
        return self.input_ids

    def to(self, device: torch.device) -> "LabelledBatch":
        tensors = (item.name for item in fields(self) if item.init)
        moved = replace(
            self,
            **{
                name: value.to(device, non_blocking=True)
                for name in tensors
                if isinstance(value := getattr(self, name), Tensor)
            },
        )
        object.__setattr__(moved, "visibility", self.visibility.to(device))
        return moved
