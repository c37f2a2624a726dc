"""What `generate` is asked for, checked before anything is computed; all raise ValueError."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mlm.family.config import XLMRobertaXLConfig
from mlm.family.config_kinds import KINDS, NUMBER, SWITCH, WHOLE, or_none

DEFAULT_LENGTH = 20  # tokens, the prompt's included, where neither length is given


def checked_prompt(ids: Any, inputs: Any) -> Tensor:
    """The ids that a text begins with, under whichever of their two names they are given."""
    if (ids is None) == (inputs is None):
        both = "neither" if ids is None else "both"
        raise ValueError(f"{both} of input_ids and inputs is given; give the prompt as input_ids")
    ids = inputs if ids is None else ids
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"input_ids is of the type {type(ids).__name__}, and a tensor of ids is expected; give "
            f"what a tokenizer returns as generate(**batch)"
        )
    if ids.dim() != 2 or 0 in ids.shape:
        raise ValueError(
            f"input_ids has the shape {tuple(ids.shape)}, and generation continues (batch, "
            f"prompt) with at least one token; give it so"
        )
    return ids


def new_tokens(ids: Tensor, max_length: Any, max_new_tokens: Any, least: Any) -> int:
    """The tokens to add to (batch, prompt) ids at most."""
    for name, value in (("max_length", max_length), ("max_new_tokens", max_new_tokens)):
        or_none(WHOLE).check(name, value)
    WHOLE.check("min_new_tokens", least)
    if max_length is not None and max_new_tokens is not None:
        raise ValueError(
            f"max_length={max_length} and max_new_tokens={max_new_tokens} are both given; give one"
        )
    prompt = ids.shape[1]
    length = DEFAULT_LENGTH if max_length is None else max_length
    name, value = (
        ("max_length", length) if max_new_tokens is None else ("max_new_tokens", max_new_tokens)
    )
    new = length - prompt if max_new_tokens is None else max_new_tokens
    if new < 1:
        raise ValueError(
            f"{name}={value} leaves no token to add to a prompt of {prompt}; give a larger one"
        )
    if not 0 <= least <= new:
        raise ValueError(
            f"min_new_tokens={least} is not from 0 to the {new} tokens that {name}={value} allows; "
            f"give fewer"
        )
    return new


def checked_ends(config: XLMRobertaXLConfig, ends: Any, pad: Any) -> tuple[list[int], int]:
    """The ids that a text ends with, which may be none, and the one after its end."""
    given = config.eos_token_id if ends is None else ends
    given = given.tolist() if isinstance(given, Tensor) else given
    pad = config.pad_token_id if pad is None else pad
    KINDS["eos_token_id"].check("eos_token_id", given)
    WHOLE.check("pad_token_id", pad)
    found = [] if given is None else [given] if isinstance(given, int) else list(given)
    for name, value in [("pad_token_id", pad), *(("eos_token_id", end) for end in found)]:
        if not 0 <= value < config.vocab_size:
            raise ValueError(
                f"{name}={value} is not an id of the model, which has {config.vocab_size}; give "
                f"one from 0 to {config.vocab_size - 1}"
            )
    return found, pad


def check_places(config: XLMRobertaXLConfig, ids: Tensor, mask: Tensor | None, new: int) -> None:
    """Whether there is a position for each of `new` tokens after (batch, prompt) ids."""
    if not config.is_decoder:
        raise ValueError(
            "generate is for decoders, and this model has is_decoder=False; set is_decoder=True in "
            "the config"
        )
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}, and generation takes that of "
            f"input_ids, {tuple(ids.shape)}; give it so"
        )
    kept = (ids != config.pad_token_id) if mask is None else mask.bool()
    if not bool(kept[:, -1].all()):
        row = int((~kept[:, -1]).nonzero()[0])
        raise ValueError(
            f"row {row} of input_ids ends in padding, and generation continues after the last "
            f"token; pad on the left (padding_side='left' in the tokenizer)"
        )
    real = int((ids != config.pad_token_id).sum(dim=1).max())
    absolute = config.position_embedding_type == "absolute"
    most = config.max_position_embeddings - (config.pad_token_id + 1 if absolute else 0)
    longest = (real if absolute else ids.shape[1]) + new
    if longest > most:
        raise ValueError(
            f"a prompt of {longest - new} tokens and {new} new ones are {longest}, and "
            f"max_position_embeddings={config.max_position_embeddings} gives positions to {most}; "
            f"ask for fewer"
        )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; sequences: of each row."""

    sample: bool
    temperature: float
    top_k: int
    top_p: float
    sequences: int


def checked_sampling(
    sample: Any, temperature: Any, top_k: Any, top_p: Any, sequences: Any, generator: Any
) -> Sampling:
    """None in place of any of them asks for nothing."""
    kinds = {
        "do_sample": (SWITCH, sample),
        "temperature": (NUMBER, temperature),
        "top_k": (WHOLE, top_k),
        "top_p": (NUMBER, top_p),
        "num_return_sequences": (WHOLE, sequences),
    }
    for name, (kind, value) in kinds.items():
        or_none(kind).check(name, value)
    asked = {
        "temperature": temperature not in (None, 1.0),
        "top_k": top_k not in (None, 50),
        "top_p": top_p not in (None, 1.0),
        "num_return_sequences": sequences not in (None, 1),
        "generator": generator is not None,
    }
    made = Sampling(
        bool(sample),
        1.0 if temperature is None else temperature,
        top_k or 0,
        1.0 if top_p is None else top_p,
        1 if sequences is None else sequences,
    )
    if not made.temperature > 0:  # rejects NaN, too
        raise ValueError(f"temperature={temperature} is not above 0; give 1.0, or do_sample=False")
    if made.top_k < 0:
        raise ValueError(f"top_k={top_k} is below 0; give 0 for all tokens, or more")
    if not 0 < made.top_p <= 1:
        raise ValueError(f"top_p={top_p} is not above 0 and up to 1; give 1.0 for all tokens")
    if made.sequences < 1:
        raise ValueError(f"num_return_sequences={sequences} is below 1; give 1 or more")
    for name, given in asked.items():
        if given and not made.sample:
            raise ValueError(
                f"{name} is given with do_sample=False, where nothing is drawn; add do_sample=True"
            )
    return made
