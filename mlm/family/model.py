"""The encoder of the family, or its decoder: what all heads stand on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlm.batch.visibility import masked_by
from mlm.family import inputs
from mlm.family.cache import KeyValues, checked
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.outputs import ModelOutput
from mlm.family.pretrained import Pretrained
from mlm.model.attention import AttentionInputs
from mlm.model.embeddings import PositionEmbeddings
from mlm.model.encoder import word_embeddings
from mlm.model.heads import FinalNorm, Pooler
from mlm.model.layer import EncoderLayer, LayerOutputs
from parallel.groups import Group
from parallel.tensor.collectives import gather_from_group


class Embeddings(PositionEmbeddings):
    """Word, position and token-type embeddings under one name, as in transformers."""

    def __init__(self, config: XLMRobertaXLConfig, group: Group):
        super().__init__(config.shape(), config.position_embedding_type == "absolute")
        self.word_embeddings = word_embeddings(config.shape(), group)


class Encoder(nn.Module):
    def __init__(self, config: XLMRobertaXLConfig, group: Group, attention: str):
        super().__init__()
        shape, options = config.shape(), config.layer_options(attention)
        self.layer = nn.ModuleList(
            EncoderLayer(shape, index, group, options) for index in range(shape.num_hidden_layers)
        )
        self.LayerNorm = FinalNorm(shape.hidden_size, eps=shape.layer_norm_eps)


class XLMRobertaXLModel(Pretrained):
    """The bare model; with `config.is_decoder` each token attends to itself and earlier ones, with
    `config.add_cross_attention` also to `encoder_hidden_states`.

    add_pooling_layer: whether `pooler_output` is given
    group: tensor-parallel ranks that hold the model together, each the heads, feed-forward features
        and ids of its part; inputs and outputs are whole on every rank
    seed: of the initial weights; None: drawn from torch's generator
    attention: `auto`, `fused` or `unfused`
    """

    def __init__(
        self,
        config: XLMRobertaXLConfig,
        add_pooling_layer: bool = True,
        *,
        group: Group = None,
        seed: int | None = None,
        attention: str = "auto",
    ):
        super().__init__(config, group)
        self.embeddings = Embeddings(config, group)
        self.encoder = Encoder(config, group, attention)
        self.pooler = Pooler(config.shape()) if add_pooling_layer else None
        self.finish(seed)

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
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """input_ids, token_type_ids, position_ids: (batch, seq_len); inputs_embeds: (batch,
        seq_len, hidden_size) in place of input_ids; attention_mask: (batch, earlier + seq_len) or
        (batch, seq_len, earlier + seq_len), the latter as it stands for a decoder, too; head_mask:
        (heads,) or (layers, heads), numbers that attention weights are multiplied by;
        encoder_hidden_states: (batch, encoder_len, hidden_size) with its mask. Vectors of another
        dtype than the weights' are cast to that.

        Returns `last_hidden_state` (batch, seq_len, hidden_size), `pooler_output` (batch,
        hidden_size), `past_key_values` (a `KeyValues`), `hidden_states` (layers + 1 of them, the
        last one normed), `attentions` and `cross_attentions` (each layer's (batch, heads, queries,
        keys)). Raises ValueError for what does not fit together or is unsupported.
        """
        out = self.encode(
            self.dropout_key(),
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
        )
        return out if self.as_object(return_dict) else out.to_tuple()

    def encode(self, dropout_key: int, **given: Any) -> ModelOutput:
        """`forward` of the arguments `given` with the pass's dropout key, for heads to share."""
        config = self.config
        asked = inputs.checked(config, **given)
        rows, length = asked.batch, asked.length
        layers: list[EncoderLayer] = list(self.encoder.layer)  # pyright: ignore
        past = checked(
            given.get("past_key_values"),
            rows,
            [(layer.attention.self.heads, self._crossing_heads(layer)) for layer in layers],
            config.hidden_size // config.num_attention_heads,
            source=None if asked.encoder_states is None else asked.encoder_states.shape[1],
        )
        earlier = 0 if past is None else past.get_seq_length()
        positions, tokens = inputs.positions(config, asked, past)
        if asked.embeds is None:
            words = self.embeddings.word_embeddings(asked.ids)
        else:
            words = asked.embeds.to(self.dtype)
        x = self.embeddings.add(words, positions, asked.token_types, dropout_key)
        shape = (rows, length, earlier + length)
        causal = config.is_decoder
        visibility = masked_by("attention_mask", asked.mask, shape, causal, x.device)
        source, seen = None, None
        if asked.encoder_states is not None:
            source = asked.encoder_states.to(self.dtype)
            shape = (rows, length, source.shape[1])
            name = "encoder_attention_mask"
            seen = masked_by(name, asked.encoder_mask, shape, device=x.device)
        states, weights, cross_weights, cached = [x], [], [], []
        for number, layer in enumerate(layers):
            earlier_keys = None if past is None else past[number]
            factor = None if asked.head_mask is None else asked.head_mask[number].to(x)
            extras = AttentionInputs(earlier_keys and earlier_keys[:2], None, factor, asked.weights)
            cross = None
            if source is not None:
                past_cross = earlier_keys and earlier_keys[2:]
                cross = (seen, AttentionInputs(past_cross, source, factor, asked.weights))
            out = self._run(layer, x, visibility, dropout_key, extras, cross)
            x = out.x
            states.append(x)
            weights.append(out.weights)
            cross_weights.append(out.cross_weights)
            cached.append(out.past)
        states[-1] = x = nn.LayerNorm.forward(self.encoder.LayerNorm, x)
        return ModelOutput(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler(x),
            past_key_values=KeyValues(tuple(cached), tokens) if asked.cache else None,
            hidden_states=tuple(states) if asked.states else None,
            attentions=self._whole(weights) if asked.weights else None,
            cross_attentions=self._whole(cross_weights) if asked.weights and seen else None,
        )

    @staticmethod
    def _crossing_heads(layer: EncoderLayer) -> int:
        cross = getattr(layer, "crossattention", None)
        return 0 if cross is None else cross.self.heads

    def _run(self, layer: EncoderLayer, x: Tensor, *given: Any) -> LayerOutputs:
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return layer.run(x, *given)
        # Only fused attention dropout on CUDA draws from the generator; all else is keyed.
        return checkpoint(
            layer.run,
            x,
            *given,
            use_reentrant=False,
            preserve_rng_state=x.device.type != "cpu",
        )

    def _whole(self, weights: list[Tensor]) -> tuple[Tensor, ...]:
        """Attention weights of all heads, on every rank."""
        if self.group is None:
            return tuple(weights)
        return tuple(
            gather_from_group(w.movedim(1, -1), self.group).movedim(-1, 1) for w in weights
        )


class Headed(Pretrained):
    """The bare model and a head on it; a subclass names the head and makes it."""

    head_name: str
    pooled = False

    def __init__(
        self,
        config: XLMRobertaXLConfig,
        *,
        group: Group = None,
        seed: int | None = None,
        attention: str = "auto",
    ):
        super().__init__(config, group)
        seed = self.drawn_seed(seed)
        self.roberta = XLMRobertaXLModel(
            config, self.pooled, group=group, seed=seed, attention=attention
        )
        self.add_module(self.head_name, self.new_head())
        self.finish(seed)

    @property
    def head(self) -> nn.Module:
        return self.get_submodule(self.head_name)

    def new_head(self) -> nn.Module:
        """The head, with weights that are yet to be filled."""
        raise AssertionError("a model names its head")

    @classmethod
    def check_labels(
        cls,
        config: XLMRobertaXLConfig,
        labels: Tensor,
        mask: Tensor | None = None,
        choices: int = 1,
    ) -> None:
        """Raises ValueError for values of labels that the loss does not take, where values are
        checked. mask: the attention mask; choices: of multiple choice"""
