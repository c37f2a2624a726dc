"""The one thing that data, model and engine agree on: a micro-batch."""

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class MicroBatch:
    """Blocks of tokens with masked positions. Shapes are fixed for a whole run.

    input_ids: (micro_batch, seq_len) int64, masked; padding, if any, at the end of a row
    lengths: (micro_batch,) int64, tokens before the padding: seq_len in training
    positions: (micro_batch, masked) int64, the masked positions of each row; 0 where unused
    targets: (micro_batch, masked) int64, the ids that stood there; -100 where unused
    languages: (micro_batch,) int64, the row's language, as an index into the shards' languages
    loss_scale: what the sum of the losses of the masked tokens is multiplied by
    dropout_key: a key (seed, step, micro-batch) that every dropout mask is derived from
    digest: of all that it is trained on, for the ledger; sums of them count modulo 2^64
    begins: (micro_batch, seq_len) int64 or None; where in its row each token's document begins,
        of documents that are kept from each other; padding counts as a document
    """

    input_ids: Tensor
    lengths: Tensor
    positions: Tensor
    targets: Tensor
    languages: Tensor
    loss_scale: float = 1.0
    dropout_key: int = 0
    digest: int = 0
    begins: Tensor | None = None

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

    def mask_for(self, x: Tensor, training: bool, causal: bool) -> tuple[Tensor | None, bool]:
        """What may be attended to in `x`, bool, as an attention takes it (None where all may), and
        whether some token may attend to nothing, which is never so here.

        Training blocks are full; only held-out ones end in padding.
        """
        assert not causal, "pretraining masks tokens and sees both sides of them"
        if self.begins is not None:
            return self.same_document, False
        return None if training else key_mask(self.lengths, self.input_ids.shape[1]), False

    @cached_property
    def same_document(self) -> Tensor:
        """(micro_batch, 1, seq_len, seq_len) bool, true where both tokens are of one document."""
        assert self.begins is not None, "documents are kept from each other"
        return (self.begins[:, :, None] == self.begins[:, None, :]).unsqueeze(1)

    def to(self, device: torch.device) -> "MicroBatch":
        """The same batch on `device`."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)


def key_mask(lengths: Tensor, seq_len: int) -> Tensor:
    """(micro_batch, 1, 1, seq_len) bool, true where a token may be attended to."""
    places = torch.arange(seq_len, device=lengths.device)
    return (places < lengths.unsqueeze(1))[:, None, None, :]
