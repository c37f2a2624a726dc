"""Keys and values of earlier tokens, which a decoder gives out and takes back."""

from collections.abc import Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

Layers = tuple[tuple[Tensor, ...], ...]


class KeyValues(tuple):
    """Per layer (key, value) or (key, value, cross key, cross value), each (batch, heads, length,
    head_size); under tensor parallelism the heads are those of the rank.

    tokens: (batch, 1) int64, how many of the earlier tokens were real ones, from which positions
    continue; None: all of them, or those that the attention mask says
    """

    tokens: Tensor | None

    def __new__(cls, layers: Layers, tokens: Tensor | None = None) -> "KeyValues":
        made = super().__new__(cls, layers)
        made.tokens = tokens
        return made

    def get_seq_length(self) -> int:
        return self[0][0].shape[2]

    def select(self, rows: Tensor) -> "KeyValues":
        """The cache of the batch's `rows` (new batch,), in that order."""
        layers = tuple(tuple(tensor[rows] for tensor in layer) for layer in self)
        return KeyValues(layers, None if self.tokens is None else self.tokens[rows])


pytree.register_pytree_node(
    KeyValues,
    lambda cache: ([tuple(cache), cache.tokens], None),
    lambda children, _: KeyValues(*children),
    serialized_type_name=f"{KeyValues.__module__}.{KeyValues.__name__}",
)


def checked(
    given: Any, batch: int, heads: Sequence[tuple[int, int]], head_size: int, source: int | None
) -> KeyValues | None:
    """`past_key_values` as a cache of this model; raises ValueError where they are none.

    heads: of each layer's attention and cross attention on this rank
    source: tokens that cross attention attends to; None without it
    """
    if given is None:
        return None
    if not isinstance(given, tuple | list):
        raise ValueError(
            f"past_key_values is a {type(given).__name__}; give what a call of this model "
            f"returned, or a tuple of (key, value) for each layer"
        )
    if len(given) != len(heads):
        raise ValueError(
            f"past_key_values has {len(given)} layers, and the model {len(heads)}; give what a "
            f"call of this model returned"
        )
    count = 2 if source is None else 4
    lengths = set()
    for number, (tensors, (attention_heads, crossing)) in enumerate(zip(given, heads, strict=True)):
        if len(tensors) != count or not all(isinstance(t, Tensor) for t in tensors):
            raise ValueError(
                f"past_key_values has {len(tensors)} items for layer {number}, and {count} tensors "
                f"(key, value{', cross key, cross value' if count == 4 else ''}) are expected; "
                f"give what a call of this model returned"
            )
        length = tensors[0].shape[2] if tensors[0].dim() == 4 else "length"
        shapes = 2 * [(batch, attention_heads, length, head_size)]
        shapes += 2 * [(batch, crossing, source, head_size)]
        for tensor, shape in zip(tensors, shapes, strict=False):
            if tuple(tensor.shape) != shape:
                expected = f"({', '.join(map(str, shape))})"
                raise ValueError(
                    f"past_key_values has a tensor of the shape {tuple(tensor.shape)} for layer "
                    f"{number}, and (batch, heads, length, head size) is {expected} here; give "
                    f"the cache of this batch"
                )
        lengths.add(length)
    if len(lengths) != 1:
        raise ValueError(
            f"past_key_values has layers of {', '.join(map(str, sorted(lengths)))} tokens, and all "
            f"are of one length; give what a call of this model returned"
        )
    return given if isinstance(given, KeyValues) else KeyValues(tuple(map(tuple, given)))
