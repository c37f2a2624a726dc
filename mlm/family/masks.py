"""The masks that users give, as numbers to add to attention scores."""

import torch
from torch import Tensor


def added_mask(
    name: str, given: Tensor | None, shape: tuple[int, int, int], causal: bool, like: Tensor
) -> tuple[Tensor | None, bool]:
    """What is added to scores: 0 where a query may attend to a key, else the lowest finite number.

    given: (batch, keys), or (batch, queries, keys), which says all, order included; None: all ones
    shape: (batch, queries, keys); the last queries stand at the last keys
    like: has the dtype and the device of the scores
    Returns (batch or 1, 1, queries or 1, keys), or None where nothing is masked; and whether some
    query may attend to nothing: it attends to all alike, since the lowest number is finite.
    """
    batch, queries, keys = shape
    allowed = None
    if given is not None:
        if tuple(given.shape) not in ((batch, keys), (batch, queries, keys)):
            raise ValueError(
                f"{name} has the shape {tuple(given.shape)}, and (batch, keys)=({batch}, {keys}) "
                f"or (batch, queries, keys)=({batch}, {queries}, {keys}) is due; give it so, 1 "
                f"where a token may be attended to"
            )
        allowed = given.to(like.device).bool()
        if given.dtype != torch.bool and not bool((given.to(like.device) == allowed).all()):
            wrong = given[(given != 0) & (given != 1)].flatten()[0].item()
            raise ValueError(
                f"{name} holds {wrong:g}, and a mask is of 1 where a token may be attended to and "
                f"0 where not; give it so (what is added to scores is made of it)"
            )
        allowed = allowed[:, None] if given.dim() == 3 else allowed[:, None, None]
    if causal and (given is None or given.dim() == 2) and queries > 1:
        ones = torch.ones(queries, keys, dtype=torch.bool, device=like.device)
        earlier = ones.tril(keys - queries)
        allowed = earlier[None, None] if allowed is None else allowed & earlier
    if allowed is None or bool(allowed.all()):
        return None, False
    mask = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
    blind = not bool(allowed.any(dim=-1).all())
    return mask.masked_fill_(~allowed, torch.finfo(like.dtype).min), blind
