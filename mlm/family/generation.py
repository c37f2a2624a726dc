"""Generation of text by a causal language model: the likeliest next token, or a drawn one."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlm.family import generation_rules as rules
from mlm.family import options
from mlm.family.cache import KeyValues
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.inputs import check_tensors
from parallel.groups import Group

DOES = (
    "takes the likeliest next token, or draws it by temperature, top_k and top_p, from input_ids "
    "and attention_mask"
)


class Generation:
    """`generate` of a model that is called with ids and gives logits and a cache."""

    config: XLMRobertaXLConfig
    group: Group

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = 0,
        do_sample: bool | None = False,
        temperature: float | None = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        use_cache: bool = True,
        num_return_sequences: int | None = 1,
        generator: torch.Generator | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **unsupported: Any,
    ) -> Tensor:
        """Continues each row of `input_ids` until `eos_token_id` (one or several; None: that of
        the config, which may be none) or the length is reached.

        input_ids: (batch, prompt), padded on the left, or `inputs`, as transformers calls them;
            attention_mask: of the same shape; None: 0 at the padding
        max_length: tokens of a row with its prompt (default 20); max_new_tokens: without it
        do_sample: draw from the softmax of the logits divided by `temperature`, of the `top_k`
            likeliest tokens (0: all), of those the fewest that have `top_p` of the probability,
            where None asks for nothing of the three; num_return_sequences draws of each row;
            generator: in place of torch's own
        Returns (batch * num_return_sequences, prompt + new) ids; a row that has ended continues
        with `pad_token_id`. Puts the model into evaluation mode while it runs. Raises ValueError,
        also for anything else that transformers has, such as beams.
        """
        options.refuse("generate", unsupported, DOES)
        config = self.config
        ids = rules.checked_prompt(input_ids, inputs)
        check_tensors(
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        least = min_new_tokens or 0
        most = rules.new_tokens(ids, max_length, max_new_tokens, least)
        rules.check_places(config, ids, attention_mask, most)
        ends, pad = rules.checked_ends(config, eos_token_id, pad_token_id)
        sampling = rules.checked_sampling(
            do_sample, temperature, top_k, top_p, num_return_sequences, generator
        )
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
        if sampling.sequences > 1:
            ids, mask, *rest = (
                None if tensor is None else tensor.repeat_interleave(sampling.sequences, dim=0)
                for tensor in (ids, mask, *encoder.values())
            )
            encoder = dict(zip(encoder, rest, strict=True))
        assert ids is not None
        assert mask is not None
        modes = [(module, module.training) for module in self.modules()]  # pyright: ignore
        self.eval()  # pyright: ignore
        try:
            choose = _Choice(sampling, generator, self.group)
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
                if number < least:
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

    def __init__(
        self, sampling: rules.Sampling, generator: torch.Generator | None, group: Group
    ) -> None:
        self.sampling, self.generator, self.group = sampling, generator, group

    def __call__(self, logits: Tensor) -> Tensor:
        asked = self.sampling
        if not asked.sample:
            return logits.argmax(dim=-1)
        logits = logits / asked.temperature
        if 0 < asked.top_k < logits.shape[-1]:
            least = logits.topk(asked.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if asked.top_p < 1:
            logits = self._nucleus(logits)
        token = torch.multinomial(logits.softmax(dim=-1), 1, generator=self.generator).squeeze(1)
        if self.group is not None:  # each rank has drawn; one draw counts
            dist.broadcast(token, dist.get_global_rank(self.group, 0), group=self.group)
        return token

    def _nucleus(self, logits: Tensor) -> Tensor:
        """Keeps the fewest likeliest tokens whose probabilities reach `top_p`."""
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        enough = shares.cumsum(dim=-1) - shares >= self.sampling.top_p  # reached before this token
        return logits.masked_fill(enough.scatter(1, places, enough), -torch.inf)
