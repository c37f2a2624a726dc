"""What the tests of decoder mode share: padded rows, a source to attend to, calls by chunks."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.family.family_fixtures import PAD, SEQ, TINY, noise, our_model, padded, randomise, tokens

CAUSAL = "XLMRobertaXLForCausalLM"
HIDDEN, SOURCE = TINY["hidden_size"], 7  # tokens of the source
POSITIONS = ["absolute", "relative_key", "relative_key_query"]
CUTS = {
    "by one": range(SEQ + 1),
    "by several": [0, 5, 6, 13, 17, SEQ],
    "one, then the others": [0, 1, SEQ],
    "all but one": [0, SEQ - 1, SEQ],
}
PADDING: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "none": lambda: (tokens(), torch.ones(3, SEQ).long()),
    "right": lambda: padded((SEQ, 13, 2)),
    "left": lambda: padded((SEQ, 13, 2), "left"),
    "inside": lambda: _inside(),
}


def _inside() -> tuple[Tensor, Tensor]:
    """As where a prompt is padded on the right and continues after the padding."""
    mask = torch.ones(3, SEQ).long()
    mask[0, 3:7] = mask[1, 6] = mask[2, 1:12] = 0
    return tokens().masked_fill(mask == 0, PAD), mask


@cache
def decoder(positions: str = "absolute", crossed: bool = False) -> Any:
    model = our_model(
        CAUSAL, is_decoder=True, add_cross_attention=crossed, position_embedding_type=positions
    )
    randomise(model)
    return model.eval()


def by_chunks(
    model: Any,
    cuts: Sequence[int],
    mask: Tensor | None = None,
    past: Any = None,
    plain: bool = False,
    **given: Any,
) -> tuple[list[Any], Any]:
    """The outputs of calls on the places between `cuts`, and the last cache.

    given: what has a value for each place is cut, too; all else goes to every call as it is.
    plain: whether caches are handed on as tuples of tensors, which know nothing else
    """
    outputs = []
    for start, end in pairwise(cuts):
        own = {
            name: value[:, start:end] if name in ("input_ids", "inputs_embeds") else value
            for name, value in given.items()
        }
        if mask is not None:
            own["attention_mask"] = mask[:, :end] if mask.dim() == 2 else mask[:, start:end, :end]
        out = model(**own, past_key_values=past, use_cache=True)
        past = tuple(map(tuple, out.past_key_values)) if plain else out.past_key_values
        outputs.append(out)
    return outputs, past


def logits_of(outputs: list[Any]) -> Tensor:
    return torch.cat([out.logits for out in outputs], dim=1)


def ids_and_mask(lengths=(SEQ, 13, 1), side: str = "right") -> dict[str, Tensor]:
    ids, mask = padded(lengths, side)
    return {"input_ids": ids, "attention_mask": mask}


def cross(mask: Tensor | None = None) -> dict[str, Tensor]:
    given = {"encoder_hidden_states": noise(3, SOURCE, HIDDEN, seed=6)}
    return given if mask is None else {**given, "encoder_attention_mask": mask}


def source_mask(side: str) -> Tensor:
    return padded((SOURCE, 4, 1), side)[1]


def refusal(call: Callable[[], Any]) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    text = str(caught.value)
    assert text
    assert "\n" not in text.strip()
    assert ". " not in text
    return text
