"""Language models of the family: of masked tokens, and of the next token."""

import warnings
from types import MappingProxyType
from typing import Any

from torch import Tensor

from mlm.family.config import XLMRobertaXLConfig
from mlm.family.generation import Generation
from mlm.family.inputs import check_tensors
from mlm.family.labels import check_classes
from mlm.family.model import Headed
from mlm.family.outputs import CausalOutput, HeadOutput
from mlm.model.heads import LMHead
from mlm.model.losses import mean_cross_entropy, next_token_loss


class LanguageModel(Headed):
    """An encoder or decoder with the head over the vocabulary."""

    head_name = "lm_head"
    lm_head: LMHead
    all_tied_weights_keys = MappingProxyType(
        {
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        }
    )
    _tied_weights_keys = all_tied_weights_keys
    _keys_to_ignore_on_save = tuple(all_tied_weights_keys)

    def new_head(self) -> LMHead:
        return LMHead(self.config.shape(), self.group, self.get_input_embeddings().weight)

    def tie_weights(self) -> None:
        """Makes the decoder's parameters the word embeddings' and the head's bias again."""
        self.lm_head.tie(self.get_input_embeddings().weight)

    @classmethod
    def check_labels(
        cls,
        config: XLMRobertaXLConfig,
        labels: Tensor,
        mask: Tensor | None = None,
        choices: int = 1,
    ) -> None:
        check_classes(labels, config.vocab_size)


class XLMRobertaXLForMaskedLM(LanguageModel):
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Inputs as in `XLMRobertaXLModel`; labels: (batch, seq_len) ids, -100 where none counts.

        Returns `loss` (the mean over the labels), `logits` (batch, seq_len, vocab_size),
        `hidden_states` and `attentions`.
        """
        check_tensors(labels=labels)
        out = self.roberta(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            dropout_key=self.dropout_key(),
        )
        logits = self.lm_head(out.last_hidden_state)
        loss = None
        if labels is not None:
            self.check_labels(self.config, labels)
            loss = mean_cross_entropy(logits, labels, self.config.label_smoothing)
        made = HeadOutput(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return self.returned(made, return_dict)


class XLMRobertaXLForCausalLM(LanguageModel, Generation):
    def __init__(self, config: XLMRobertaXLConfig, **options: Any):
        if not config.is_decoder:
            warnings.warn(
                "XLMRobertaXLForCausalLM with is_decoder=False sees the tokens that it is to "
                "predict; set is_decoder=True in the config for a model of the next token",
                stacklevel=2,
            )
        super().__init__(config, **options)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalOutput | tuple[Any, ...]:
        """Inputs as in `XLMRobertaXLModel`; labels: (batch, seq_len) ids, not shifted, -100 where
        none counts; logits_to_keep: of how many last positions (0: all), or which.

        Returns `loss` (the mean over the labels but each row's first), `logits` (batch, seq_len,
        vocab_size), `past_key_values`, `hidden_states`, `attentions` and `cross_attentions`. With
        labels no cache is given unless `use_cache` asks for it.
        """
        if labels is not None and use_cache is None:
            use_cache = False
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError(
                f"logits_to_keep={logits_to_keep} is given with labels, whose loss needs all "
                f"logits; leave one of them out"
            )
        check_tensors(labels=labels)
        out = self.roberta(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            dropout_key=self.dropout_key(),
        )
        logits = self.lm_head(_kept(out.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            self.check_labels(self.config, labels)
            loss = next_token_loss(logits, labels, self.config.label_smoothing)
        made = CausalOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            cross_attentions=out.cross_attentions,
        )
        return self.returned(made, return_dict)


def _kept(x: Tensor, positions: int | Tensor) -> Tensor:
    """The last `positions` of x (batch, seq_len, hidden_size), all for 0, or those of a tensor."""
    if isinstance(positions, Tensor):
        return x[:, positions]
    if not 0 <= positions <= x.shape[1]:
        raise ValueError(
            f"logits_to_keep={positions} is not from 0 (all) to the {x.shape[1]} positions of the "
            f"input; give such a number"
        )
    return x[:, x.shape[1] - positions :] if positions else x
