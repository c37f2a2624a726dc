"""Tiny models of the family, ours and transformers', with the same random weights.

Weights are wide (0.2, biases and norms too), so that a wrong or a missing term shows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import mlm

OUTPUTS, GRADIENTS = 2e-5, 5e-5  # the largest difference allowed, absolute
PAD, VOCAB, SEQ = 1, 128, 20
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": SEQ + PAD + 1,
    "type_vocab_size": 2,
    "initializer_range": 0.2,
    "layer_norm_eps": 0.01,  # the usual one would be lost among the rounding errors
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# What only ours has; transformers 5 would keep such keys and not look at them.
OURS_ONLY = ("label_smoothing", "position_embedding_type", "pruned_heads")


def our_model(cls_name: str, *, init: dict[str, Any] | None = None, **config: Any) -> Any:
    """A tiny model of ours; `config`: changes to TINY, `init`: further arguments of the class."""
    made = mlm.XLMRobertaXLConfig(**(TINY | config))
    return getattr(mlm, cls_name)(made, **(init or {}))


def their_model(cls_name: str, **config: Any) -> Any:
    """The same of transformers, with its plain attention; knows no keys of OURS_ONLY."""
    keys = {key: value for key, value in (TINY | config).items() if key not in OURS_ONLY}
    options: dict[str, Any] = {**keys, "attn_implementation": "eager"}
    made = transformers.XLMRobertaXLConfig(**options)
    return getattr(transformers, cls_name)(made)


def pair(cls_name: str, *, init: dict[str, Any] | None = None, **config: Any) -> tuple[Any, Any]:
    """(ours, theirs) with the same random weights, in evaluation mode.

    The weights are drawn into theirs, loaded into ours and from ours into theirs again, strictly.
    """
    ours, theirs = our_model(cls_name, init=init, **config), their_model(cls_name, **config)
    randomise(theirs)
    drawn = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(drawn, strict=True)
    kept = ours.state_dict()
    assert set(kept) == set(drawn)
    theirs.load_state_dict(kept, strict=True)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, drawn[name]), name
    return ours.eval(), theirs.eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every parameter from N(0, 0.2^2), weights of norms around 1; the padding rows, too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        if "norm" in name.lower().rsplit(".", 2)[-2] and name.endswith("weight"):
            parameter.add_(1.0)


def tokens(rows: int = 3, length: int = SEQ, seed: int = 1) -> Tensor:
    """(rows, length) ids, none of them special."""
    return torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: Sequence[int] = (SEQ, 13, 1), side: str = "right") -> tuple[Tensor, Tensor]:
    """Ids and their attention mask, (rows, max(lengths)) each, padded on one side."""
    longest = max(lengths)
    places, real = torch.arange(longest), torch.tensor(lengths).unsqueeze(1)
    mask = (places < real) if side == "right" else (places >= longest - real)
    return tokens(len(lengths), longest).masked_fill(~mask, PAD), mask.long()


def additive(mask: Tensor) -> Tensor:
    """A mask (rows, queries, keys) as transformers takes it: (rows, 1, queries, keys) to add."""
    hidden = (mask == 0).unsqueeze(1)
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)


def same(found: Tensor, expected: Tensor, atol: float = OUTPUTS, what: str = "") -> None:
    def message(text: str) -> str:
        return f"{what}: {text}"

    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol, msg=message)


def fields(output: Any) -> dict[str, tuple[Tensor, ...]]:
    """What an output holds, but the cache; a single tensor as a tuple of one."""
    # (transformers calls it `cache` from 5.24 on)
    kept = ("past_key_values", "cache")
    items = ((key, value) for key, value in output.items() if key not in kept)
    held = {key: (value,) if isinstance(value, Tensor) else value for key, value in items}
    # transformers gives an empty tuple of cross attentions where there are none.
    return {key: value for key, value in held.items() if value is not None and len(value)}


def same_outputs(found: Any, expected: Any) -> None:
    """Every field of two outputs but the cache, their names and their order."""
    mine, theirs = fields(found), fields(expected)
    assert list(mine) == list(theirs)
    for key, values in theirs.items():
        assert len(mine[key]) == len(values), key
        for place, (one, other) in enumerate(zip(mine[key], values, strict=True)):
            same(one, other, what=f"{key}[{place}]")


def scalar(output: Any) -> Tensor:
    """The loss, or else the sum of all outputs, each weighted at random: every term counts."""
    if getattr(output, "loss", None) is not None:
        return output.loss
    total = torch.zeros(())
    for tensor in (tensor for values in fields(output).values() for tensor in values):
        weights = noise(*tensor.shape, seed=3)
        total = total + (tensor * weights).sum() / tensor.numel() ** 0.5
    return total


def same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Of every parameter; where theirs has none, ours has none or zeros."""
    mine, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert set(mine) == set(expected)
    for name, parameter in expected.items():
        gradient = mine[name].grad
        if parameter.grad is None:
            assert gradient is None or not gradient.any(), name
            continue
        assert gradient is not None, name
        same(gradient, parameter.grad, GRADIENTS, name)


def compare(ours: Any, theirs: Any, given: dict[str, Any], **otherwise: Any) -> Any:
    """Outputs and gradients of both models on `given`, in training and in evaluation.

    otherwise: arguments that transformers needs in another form. Without maps asked for, ours may
    take another path. Returns our output, evaluated, with hidden states and attentions.
    """
    reference = given | otherwise
    evaluated = None
    for maps in ({}, {"output_hidden_states": True, "output_attentions": True}):
        for model in (ours, theirs):
            model.train().zero_grad()
        found, expected = ours(**given, **maps), theirs(**reference, **maps)
        same_outputs(found, expected)
        scalar(found).backward()
        scalar(expected).backward()
        same_gradients(ours, theirs)
        with torch.no_grad():
            evaluated = ours.eval()(**given, **maps)
            same_outputs(evaluated, theirs.eval()(**reference, **maps))
    return evaluated


def gradients_of(model: nn.Module, call: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradient of every parameter that has one, after `call` gave a scalar."""
    model.zero_grad()
    call().backward()
    named = model.named_parameters()
    return {name: one.grad.clone() for name, one in named if one.grad is not None}
