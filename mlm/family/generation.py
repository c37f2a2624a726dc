"""Generation of text by a causal language model: the likeliest next token, or a drawn one."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlm.family import options
from mlm.family.cache import KeyValues
from mlm.family.config import XLMRobertaXLConfig
from parallel.groups import Group

DEFAULT_LENGTH = 20  # tokens, the prompt's included, where neither length is given


class Generation:
    """`generate` of a model that is called with ids and gives logits and a cache."""

    config: XLMRobertaXLConfig
    group: Group

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        num_return_sequences: int = 1,
        generator: torch.Generator | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **unserved: Any,
    ) -> Tensor:
        """Goes on with each row of `input_ids` until `eos_token_id` (one or several) or the length
        is reached.

        input_ids: (batch, prompt), padded on the left; attention_mask: of the same shape; None: 0
            at the padding
        max_length: tokens of a row with its prompt (default 20); max_new_tokens: without it
        do_sample: draw from the softmax of the logits divided by `temperature`, of the `top_k`
            likeliest tokens (0: all), of those the fewest that have `top_p` of the probability;
            num_return_sequences draws of each row; generator: in place of torch's own
        Returns (batch * num_return_sequences, prompt + new) ids; a row that has ended goes on with
        `pad_token_id`. Puts the model into evaluation mode while it runs. Raises ValueError, also
        for what the reference has beside these, such as beams.
        """
        for name in options.without_unserved(unserved, options.GENERATING, options.NEXT_TOKEN):
            raise TypeError(f"generate has no argument {name}; leave it out")
        config = self.config
        ids = input_ids
        given = config.eos_token_id if eos_token_id is None else eos_token_id
        ends = [given] if isinstance(given, int) else list(given)
        pad = config.pad_token_id if pad_token_id is None else pad_token_id
        most = _new_tokens(ids, max_length, max_new_tokens, min_new_tokens)
        _check(config, ids, attention_mask, most)
        _check_ids(config, [("pad_token_id", pad), *(("eos_token_id", end) for end in ends)])
        _check_sampling(do_sample, temperature, top_k, top_p, num_return_sequences, generator)
        if encoder_attention_mask is not None and encoder_hidden_states is None:
            raise ValueError(
                "encoder_attention_mask is given without encoder_hidden_states, whose mask it is; "
                "give both, or leave it out"
            )
        mask = (ids != config.pad_token_id).long() if attention_mask is None else attention_mask
        encoder: dict[str, Any] = {}
        if encoder_hidden_states is not None:
            encoder = {
                "encoder_hidden_states": encoder_hidden_states,
                "encoder_attention_mask": encoder_attention_mask,
            }
        if num_return_sequences > 1:
            ids, mask, *rest = (
                None if tensor is None else tensor.repeat_interleave(num_return_sequences, dim=0)
                for tensor in (ids, mask, *encoder.values())
            )
            encoder = dict(zip(encoder, rest, strict=True))
        assert ids is not None
        modes = [(module, module.training) for module in self.modules()]  # pyright: ignore
        self.eval()  # pyright: ignore
        try:
            choose = _Choice(do_sample, temperature, top_k, top_p, generator, self.group)
            ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
            last = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
            cache: KeyValues | None = None
            for number in range(most):
                new = ids if cache is None else ids[:, -1:]
                out: Any = self(  # pyright: ignore
                    new,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=use_cache,
                    logits_to_keep=1,
                    return_dict=True,
                    output_attentions=False,
                    output_hidden_states=False,
                    **encoder,
                )
                cache = out.past_key_values
                logits = out.logits[:, -1].float()
                if number < min_new_tokens:
                    logits[:, ends] = -torch.inf
                token = choose(logits).masked_fill(ended, pad)
                ids = torch.cat([ids, token.unsqueeze(1)], dim=1)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
                ended |= torch.isin(token, last)
                if bool(ended.all()):
                    break
        finally:
            for module, training in modes:
                module.training = training
        return ids


class _Choice:
    """The next token of each row, from its logits (batch, vocab_size) -> (batch,)."""

    def __init__(self, sample, temperature, top_k, top_p, generator, group: Group):
        self.sample, self.temperature, self.top_k, self.top_p = sample, temperature, top_k, top_p
        self.generator, self.group = generator, group

    def __call__(self, logits: Tensor) -> Tensor:
        if not self.sample:
            return logits.argmax(dim=-1)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            logits = self._nucleus(logits)
        token = torch.multinomial(logits.softmax(dim=-1), 1, generator=self.generator).squeeze(1)
        if self.group is not None:  # each rank has drawn; one draw counts
            dist.broadcast(token, dist.get_global_rank(self.group, 0), group=self.group)
        return token

    def _nucleus(self, logits: Tensor) -> Tensor:
        """Keeps the fewest likeliest tokens whose probabilities reach `top_p`."""
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        enough = shares.cumsum(dim=-1) - shares >= self.top_p  # reached before this token
        return logits.masked_fill(enough.scatter(1, places, enough), -torch.inf)


def _new_tokens(ids: Tensor, max_length: int | None, max_new_tokens: int | None, least: int) -> int:
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"input_ids is of the type {type(ids).__name__}, and a tensor of ids is due; give what "
            f"a tokenizer returns as generate(**batch)"
        )
    if ids.dim() != 2 or 0 in ids.shape:
        raise ValueError(
            f"input_ids has the shape {tuple(ids.shape)}, and generation goes on from (batch, "
            f"prompt) with at least one token; give it so"
        )
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


def _check_ids(config: XLMRobertaXLConfig, ids: Iterable[tuple[str, int]]) -> None:
    for name, value in ids:
        if not 0 <= value < config.vocab_size:
            raise ValueError(
                f"{name}={value} is not an id of the model, which has {config.vocab_size}; give "
                f"one from 0 to {config.vocab_size - 1}"
            )


def _check(config: XLMRobertaXLConfig, ids: Tensor, mask: Tensor | None, new: int) -> None:
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
            f"row {row} of input_ids ends in padding, and generation goes on behind the last "
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


def _check_sampling(
    sample: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    sequences: int,
    generator: torch.Generator | None,
) -> None:
    if not temperature > 0:  # not a number is neither
        raise ValueError(f"temperature={temperature} is not above 0; give 1.0, or do_sample=False")
    if top_k < 0:
        raise ValueError(f"top_k={top_k} is below 0; give 0 for all tokens, or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is not above 0 and up to 1; give 1.0 for all tokens")
    if sequences < 1:
        raise ValueError(f"num_return_sequences={sequences} is below 1; give 1 or more")
    asked = {
        "temperature": temperature != 1.0,
        "top_k": top_k != 50,
        "top_p": top_p != 1.0,
        "num_return_sequences": sequences > 1,
        "generator": generator is not None,
    }
    for name, given in asked.items():
        if given and not sample:
            raise ValueError(
                f"{name} is given with do_sample=False, where nothing is drawn; add do_sample=True"
            )
