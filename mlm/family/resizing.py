"""Other numbers of rows in the word embeddings and in what is tied to them."""

from typing import Any

import torch
from torch import Tensor, nn

from mlm.family.config import XLMRobertaXLConfig
from mlm.family.saving import whole
from parallel.groups import Group, group_rank, group_size
from parallel.sharding import shard_of, slice_of


def new_size(
    config: XLMRobertaXLConfig, group: Group, wanted: int | None, multiple: int | None
) -> int:
    """The new number of rows; raises ValueError where there cannot be so many."""
    for name, value in (("new_num_tokens", wanted), ("pad_to_multiple_of", multiple)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r} is not a whole number above 0; give one")
    size, multiple = config.vocab_size if wanted is None else wanted, multiple or 1
    size = -(-size // multiple) * multiple
    if size <= config.pad_token_id:
        raise ValueError(
            f"new_num_tokens={size} leaves no row to pad_token_id={config.pad_token_id}; give more"
        )
    ranks = group_size(group)
    if size % ranks:
        raise ValueError(
            f"new_num_tokens={size} is not a multiple of the {ranks} ranks that split the "
            f"embeddings; give pad_to_multiple_of={ranks}, too"
        )
    return size


@torch.no_grad()
def resize(model: Any, size: int, seed: int | None) -> None:
    """Cuts the rows at the end or adds some: from N(0, initializer_range^2) by a `seed`, else the
    mean of the old ones; biases of 0. A whole table is in memory while it is cut."""
    words = model.get_input_embeddings()
    group, device = model.group, model.group_device()
    table = whole(words.weight, group, device, everywhere=True)
    added = max(0, size - len(table))
    if seed is None:
        rows = table.float().mean(dim=0).expand(added, -1)
    else:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.empty(added, table.shape[1], device="cpu")
        rows.normal_(0.0, model.config.initializer_range, generator=generator)
    _give(words, "weight", torch.cat([table[:size], rows.to(table)]))
    if hasattr(words, "first"):
        words.first = group_rank(group) * words.weight.shape[0]
    head = getattr(model, "lm_head", None)
    if head is not None:
        bias = whole(head.bias, group, device, everywhere=True)
        _give(head, "bias", torch.cat([bias[:size], bias.new_zeros(added)]))
    model.config.vocab_size = size
    model.tie_weights()


def _give(owner: nn.Module, name: str, table: Tensor) -> None:
    """A new parameter: this rank's slice of `table`, with the marks of the old one."""
    old: Any = getattr(owner, name)
    local = slice_of(table, shard_of(old)).to(old.device, copy=True)
    made: Any = nn.Parameter(local.contiguous(), old.requires_grad)
    vars(made).update(vars(old))
    setattr(owner, name, made)
