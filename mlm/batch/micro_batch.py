"""The one thing that data, model and engine agree on: a micro-batch."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mlm.batch.visibility import Visibility

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """Blocks of tokens with masked positions. Shapes are fixed for a whole run.

    input_ids: (micro_batch, seq_len) int64, masked; padding, if any, at the end of a row
    visibility: which tokens may attend to which, and the positions of tokens
    positions: (micro_batch, masked) int64, the masked positions of each row; 0 where unused
    targets: (micro_batch, masked) int64, the ids that stood there; -100 where unused
    languages: (micro_batch,) int64, the row's language, as an index into the shards' languages
    loss_scale: what the sum of the losses of the masked tokens is multiplied by
    dropout_key: a key (seed, step, micro-batch) that every dropout mask is derived from
    digest: of all that it is trained on, for the ledger; sums of them count modulo 2^64
    """

    input_ids: Tensor
    visibility: Visibility
    positions: Tensor
    targets: Tensor
    languages: Tensor
    loss_scale: float = 1.0
    dropout_key: int = 0
    digest: int = 0

    @property
    def inputs(self) -> Tensor:
        """What the first layer is fed with."""
        return self.input_ids

    @property
    def masked_tokens(self) -> int:
        return int((self.targets != IGNORED).sum())

    @property
    def token_type_ids(self) -> None:
        """Every token is of the first type."""
        return None

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on `device`."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, visibility=self.visibility.to(device), **moved)
