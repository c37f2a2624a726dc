"""The arguments of a forward pass, checked before anything is computed of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlm.batch.checks import traced, values_checked
from mlm.batch.visibility import position_ids
from mlm.family.cache import KeyValues
from mlm.family.config import XLMRobertaXLConfig


@dataclass(frozen=True)
class Inputs:
    """ids (batch, length) or embeds (batch, length, hidden_size), and what goes with them."""

    batch: int
    length: int
    ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None
    token_types: Tensor | None
    position_ids: Tensor | None
    head_mask: Tensor | None  # (layers, heads)
    encoder_states: Tensor | None
    encoder_mask: Tensor | None
    cache: bool  # whether keys and values are wanted
    weights: bool
    states: bool


def checked(
    config: XLMRobertaXLConfig,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    head_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
) -> Inputs:
    """Raises ValueError at the first argument that does not fit the model or the others; on a GPU
    values are checked only where `mlm.batch.checks` says so."""
    check_tensors(
        input_ids=input_ids,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        position_ids=position_ids,
        head_mask=head_mask,
        inputs_embeds=inputs_embeds,
        encoder_hidden_states=encoder_hidden_states,
        encoder_attention_mask=encoder_attention_mask,
    )
    if (input_ids is None) == (inputs_embeds is None):
        both = "both" if input_ids is not None else "neither"
        raise ValueError(f"{both} of input_ids and inputs_embeds is given; give one of them")
    if inputs_embeds is None:
        assert input_ids is not None
        _ids("input_ids", input_ids, (None, None), config.vocab_size, "vocab_size")
        batch, length = input_ids.shape
    else:
        shape = tuple(inputs_embeds.shape)
        if len(shape) != 3 or shape[2] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds has the shape {shape}, and (batch, seq_len, "
                f"hidden_size={config.hidden_size}) is expected; give it so"
            )
        if not inputs_embeds.is_floating_point():
            raise ValueError(
                f"inputs_embeds is of the dtype {inputs_embeds.dtype}, and vectors are of floats; "
                f"give ids as input_ids, or convert it"
            )
        batch, length = shape[:2]
    if 0 in (batch, length):
        raise ValueError(
            f"the input has the shape ({batch}, {length}), and nothing can be computed of no "
            f"tokens; give at least one row of one token"
        )
    if token_type_ids is not None:
        types = config.type_vocab_size
        _ids("token_type_ids", token_type_ids, (batch, length), types, "type_vocab_size")
    if position_ids is not None:
        known = config.max_position_embeddings
        if config.position_embedding_type != "absolute":
            raise ValueError(
                f"position_ids is given, and position_embedding_type="
                f"{config.position_embedding_type} knows distances only; leave it out"
            )
        _ids("position_ids", position_ids, (batch, length), known, "max_position_embeddings")
    _check_decoder(config, past_key_values, use_cache)
    _check_encoder(config, encoder_hidden_states, encoder_attention_mask, batch)
    cache = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
    weights = config.output_attentions if output_attentions is None else output_attentions
    states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
    return Inputs(
        batch,
        length,
        input_ids,
        inputs_embeds,
        attention_mask,
        token_type_ids,
        position_ids,
        None if head_mask is None else _head_mask(config, head_mask),
        encoder_hidden_states,
        encoder_attention_mask,
        cache,
        weights,
        states,
    )


def check_tensors(**given: Any) -> None:
    """Raises ValueError for an argument that is neither a tensor nor None."""
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(
                f"{name} is of the type {type(value).__name__}, and a tensor is expected; give "
                f"torch.tensor(...) of it"
            )


def positions(
    config: XLMRobertaXLConfig, asked: Inputs, past: KeyValues | None
) -> tuple[Tensor, Tensor]:
    """Positions of the tokens, (batch or 1, length), and each row's number of real tokens so far,
    (batch, 1).

    Positions count real tokens from `pad_token_id + 1`, also after a cache: from what the cache
    knows of its tokens, else from the attention mask's. Raises ValueError where they run out.
    """
    pad, length = config.pad_token_id, asked.length
    some = asked.ids if asked.ids is not None else asked.embeds
    assert some is not None
    before = torch.zeros(asked.batch, 1, dtype=torch.long, device=some.device)
    if past is not None and past.tokens is not None:
        before = past.tokens.to(some.device)
    elif past is not None:
        earlier = past.get_seq_length()
        before += earlier
        if asked.mask is not None and asked.mask.dim() == 2:
            before = asked.mask[:, :earlier].bool().sum(dim=1, keepdim=True).to(some.device)
    if asked.ids is not None:
        real = (asked.ids != pad).sum(dim=1, keepdim=True)
        counted = position_ids(asked.ids, pad, before)
    else:
        real = torch.full_like(before, length)
        counted = torch.arange(1, length + 1, device=some.device) + before + pad
    tokens = before + real
    if asked.position_ids is not None:
        return asked.position_ids, tokens
    if traced():  # for other lengths, too; the table has rows for no more
        return counted, tokens
    # Relative positions have a vector for every distance, and need no row for a position.
    absolute = config.position_embedding_type == "absolute"
    most = config.max_position_embeddings - (pad + 1 if absolute else 0)
    longest = length + (past.get_seq_length() if past else 0)
    if absolute and longest > most:  # there may be padding among them
        longest = int(tokens.max()) if values_checked(tokens) else most
    if longest > most:
        raise ValueError(
            f"the input has {longest} tokens, and max_position_embeddings="
            f"{config.max_position_embeddings} gives positions to {most}; cut it to {most} tokens"
        )
    return counted, tokens


def _ids(name: str, ids: Tensor, shape: tuple[int | None, ...], size: int, key: str) -> None:
    """Ids from 0 to `size` - 1 in a tensor of `shape`, or of one row for all."""
    expected = tuple(ids.shape) if None in shape else shape
    if ids.dim() != 2 or tuple(ids.shape) not in (expected, (1, expected[-1])):
        asked = "(batch, seq_len)" if None in shape else f"(batch, seq_len)={expected}"
        raise ValueError(
            f"{name} has the shape {tuple(ids.shape)}, and {asked} is expected; give it so"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} is of the dtype {ids.dtype}, and ids are torch.int64; convert it")
    if ids.numel() and values_checked(ids):
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise ValueError(
                f"{name} holds {wrong}, and {key}={size} allows 0 to {size - 1}; give ids within "
                f"them"
            )


def _head_mask(config: XLMRobertaXLConfig, mask: Tensor) -> Tensor:
    expected = (config.num_hidden_layers, config.num_attention_heads)
    if tuple(mask.shape) not in (expected, expected[1:]):
        raise ValueError(
            f"head_mask has the shape {tuple(mask.shape)}, and (heads,)=({expected[1]},) or "
            f"(layers, heads)={expected} is expected; give it so, 1 where a head is kept"
        )
    return mask.expand(expected)


def _check_decoder(config: XLMRobertaXLConfig, past: Any, use_cache: bool | None) -> None:
    given = "past_key_values" if past is not None else "use_cache=True" if use_cache else None
    if given and not config.is_decoder:
        raise ValueError(
            f"{given} is for decoders, and this model has is_decoder=False; leave it out, or set "
            f"is_decoder=True in the config"
        )


def _check_encoder(
    config: XLMRobertaXLConfig, states: Tensor | None, mask: Tensor | None, batch: int
) -> None:
    if states is None:
        if mask is not None:
            raise ValueError(
                "encoder_attention_mask is given without encoder_hidden_states, whose mask it is; "
                "give both, or leave it out"
            )
        return
    if not config.add_cross_attention:
        raise ValueError(
            "encoder_hidden_states is given, and this model has no cross attention; set "
            "is_decoder=True and add_cross_attention=True in the config, or leave it out"
        )
    shape = tuple(states.shape)
    if states.dim() != 3 or shape[0] != batch or shape[2] != config.hidden_size:
        raise ValueError(
            f"encoder_hidden_states has the shape {shape}, and (batch, encoder_len, hidden_size)="
            f"({batch}, encoder_len, {config.hidden_size}) is expected; give it so"
        )
    if not states.is_floating_point():
        raise ValueError(
            f"encoder_hidden_states is of the dtype {states.dtype}, and hidden states are floats; "
            f"give those of an encoder"
        )
