"""What the tokens of a micro-batch may attend to, and which positions they have."""

from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import and_
from typing import Any

import torch
from torch import Tensor

from mlm.batch.checks import values_checked

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which keys each query of a micro-batch may attend to: made once with the micro-batch, and
    the only thing that attention kernels read of it.

    shape: (rows, queries, keys); the last query stands at the last key
    lengths: (rows,) int64, tokens before the padding at the end of a row; None: no padding
    document_starts: (rows, seq_len) int64 or None; the column where the document of each token
        starts, of documents that must not see each other; padding counts as a document
    causal: whether a query attends to no key after it
    mask: (rows, keys) or (rows, queries, keys) bool or None, as a user gave it; a 3-D one says
        everything, order included
    has_masked_rows: whether some query may attend to no key: it attends to all alike; None: not
        known, since the values of the mask were not read
    device: where the tensors lie
    """

    shape: tuple[int, int, int]
    lengths: Tensor | None = None
    document_starts: Tensor | None = None
    causal: bool = False
    mask: Tensor | None = None
    has_masked_rows: bool | None = False
    device: torch.device = CPU
    # In place of cached properties, whose locks a compiler cannot enter.
    _made: dict[Any, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def allowed(self) -> Tensor | None:
        """(rows or 1, 1, queries or 1, keys) bool, true where a query may attend to a key; None
        where each may attend to all. Made once."""
        if "allowed" not in self._made:
            self._made["allowed"] = self._allowed()
        return self._made["allowed"]

    def _allowed(self) -> Tensor | None:
        _, queries, keys = self.shape
        conditions: list[Tensor] = []
        if self.document_starts is not None:
            starts = self.document_starts
            conditions.append((starts[:, :, None] == starts[:, None, :]).unsqueeze(1))
        elif self.lengths is not None:
            columns = torch.arange(keys, device=self.device)
            conditions.append((columns < self.lengths.unsqueeze(1))[:, None, None, :])
        if self.mask is not None:
            by_query = self.mask.dim() == 3
            conditions.append(self.mask[:, None] if by_query else self.mask[:, None, None])
        if self.causal and queries > 1 and (self.mask is None or self.mask.dim() == 2):
            ones = torch.ones(queries, keys, dtype=torch.bool, device=self.device)
            conditions.append(ones.tril(keys - queries)[None, None])
        return reduce(and_, conditions) if conditions else None

    def added(self, dtype: torch.dtype) -> Tensor | None:
        """The same as numbers to add to scores: 0 where allowed, else the lowest finite number, so
        that a query that may attend to no key attends to all alike."""
        allowed = self.allowed
        if allowed is not None and dtype not in self._made:
            zeros = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
            self._made[dtype] = zeros.masked_fill_(~allowed, torch.finfo(dtype).min)
        return self._made.get(dtype)

    def positions(self, input_ids: Tensor, pad: int) -> Tensor:
        """Positions of whole rows of tokens, (rows, seq_len) -> the same int64: as in
        `position_ids`, and in each document those that it has alone."""
        found = position_ids(input_ids, pad)
        if self.document_starts is None:
            return found
        return torch.where(found > pad, found - self.document_starts, found)

    def of_rows(self, rows: slice) -> "Visibility":
        """That of some rows of the micro-batch."""
        tensors = {name: tensor[rows] for name, tensor in self._tensors().items()}
        count = len(range(*rows.indices(self.shape[0])))
        return replace(self, shape=(count, *self.shape[1:]), **tensors)

    def to(self, device: torch.device) -> "Visibility":
        moved = {name: t.to(device, non_blocking=True) for name, t in self._tensors().items()}
        return replace(self, device=device, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        named = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}


def masked_by(
    name: str,
    given: Tensor | None,
    shape: tuple[int, int, int],
    causal: bool = False,
    device: torch.device = CPU,
    read: bool = True,
) -> Visibility:
    """The visibility by a mask that a user gave as the argument `name`.

    given: (rows, keys) or (rows, queries, keys), 1 where a key may be attended to, 0 where not;
        None: all ones
    shape: (rows, queries, keys); device: where the attention runs
    read: whether the values, where they are checked, also decide what is computed: of a batch that
        is made once they may; in a forward pass, which may be recorded for other values, not
    Raises ValueError for a mask of another shape, or of other values where these are checked.
    """
    if given is None:
        return Visibility(shape, causal=causal, device=device)
    rows, queries, keys = shape
    if tuple(given.shape) not in ((rows, keys), shape):
        raise ValueError(
            f"{name} has the shape {tuple(given.shape)}, and (batch, keys)=({rows}, {keys}) or "
            f"(batch, queries, keys)=({rows}, {queries}, {keys}) is expected; give it so, 1 where "
            f"a token may be attended to"
        )
    mask = given.bool()
    checked = values_checked(given)
    if checked and given.dtype != torch.bool and not bool((given == mask).all()):
        wrong = given[(given != 0) & (given != 1)].flatten()[0].item()
        raise ValueError(
            f"{name} holds {wrong:g}, and a mask is of 1 where a token may be attended to and 0 "
            f"where not; give it so (what is added to scores is made of it)"
        )
    if not (checked and read):
        return Visibility(
            shape, causal=causal, mask=mask.to(device), has_masked_rows=None, device=device
        )
    if bool(mask.all()) and not (causal and mask.dim() == 3):
        return Visibility(shape, causal=causal, device=device)
    # Of all causal queries the first one sees the fewest keys.
    seen = mask[:, : keys - queries + 1] if causal and mask.dim() == 2 else mask
    masked = not bool(seen.any(dim=-1).all())
    return Visibility(
        shape, causal=causal, mask=mask.to(device), has_masked_rows=masked, device=device
    )


def position_ids(input_ids: Tensor, pad: int, before: Tensor | int = 0) -> Tensor:
    """Positions of tokens, counted from `pad + 1` over what is not padding; padding gets `pad`.

    input_ids: (..., seq_len) -> (..., seq_len) int64
    before: tokens of the row that came earlier, () or (..., 1)
    """
    real = (input_ids != pad).long()
    return (real.cumsum(dim=-1) + before) * real + pad
