"""The encoder of the family, or its decoder: what all heads stand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlm.batch.visibility import Visibility, masked_by
from mlm.family import inputs
from mlm.family.cache import KeyValues, checked
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.outputs import EncoderOutput
from mlm.family.pretrained import Pretrained
from mlm.model.attention import AttentionInputs, AttentionRecord
from mlm.model.embeddings import PositionEmbeddings
from mlm.model.encoder import word_embeddings
from mlm.model.heads import LinearHead, Pooler
from mlm.model.layer import EncoderLayer, Pass
from parallel.groups import Group
from parallel.tensor.collectives import gather_from_group


class Embeddings(PositionEmbeddings):
    """Word, position and token-type embeddings under one name, as in transformers."""

    def __init__(self, config: XLMRobertaXLConfig, group: Group):
        super().__init__(config.shape(), config.position_embedding_type == "absolute")
        self.word_embeddings = word_embeddings(config.shape(), group)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        positions: Tensor,
        token_type_ids: Tensor | None,
        dropout_key: int | None,
    ) -> Tensor:
        """Of ids, or of vectors in place of those of the words -> (batch, seq_len, hidden_size)"""
        if inputs_embeds is None:
            words = self.word_embeddings(input_ids)
        else:
            words = inputs_embeds.to(self.token_type_embeddings.weight.dtype)
        if token_type_ids is None:
            token_type_ids = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
        return self.add(words, positions, token_type_ids, dropout_key)


@dataclass(frozen=True)
class Asked:
    """What a pass through the layers is given besides hidden states, and asked for.

    source: (batch, keys, hidden_size) of cross attention, and its visibility `seen`
    past: keys and values of earlier tokens; head_mask: (layers, heads)
    recompute: whether layers keep only their inputs for the backward pass
    """

    source: Tensor | None = None
    seen: Visibility | None = None
    past: KeyValues | None = None
    head_mask: Tensor | None = None
    cache: bool = False
    weights: bool = False
    states: bool = False
    recompute: bool = False


class Encoder(nn.Module):
    def __init__(self, config: XLMRobertaXLConfig, group: Group, attention: str):
        super().__init__()
        shape, options = config.shape(), config.layer_options(attention)
        self.group = group
        self.layer = nn.ModuleList(
            EncoderLayer(shape, index, group, options) for index in range(shape.num_hidden_layers)
        )
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, x: Tensor, given: Pass, asked: Asked = Asked()) -> EncoderOutput:
        """x: (batch, seq_len, hidden_size); the cache is of the layers alone, as a tuple."""
        states, records = [x], []
        recorded = asked.cache or asked.weights
        for number, layer in enumerate(self.layer):
            own, crossed = (AttentionRecord(), AttentionRecord()) if recorded else (None, None)
            past = (None,) * 4 if asked.past is None else asked.past[number]
            factor = None if asked.head_mask is None else asked.head_mask[number].to(x)
            extras = AttentionInputs(_pair(past[:2]), None, factor, asked.weights, own)
            cross = None
            if asked.source is not None and asked.seen is not None:
                before = _pair(past[2:])
                inputs = AttentionInputs(before, asked.source, factor, asked.weights, crossed)
                cross = (asked.seen, inputs)
            if asked.recompute:
                # But for fused dropout on CUDA, torch's generator draws only without a key.
                drawn = x.device.type != "cpu" or given.dropout_key is None
                options: Any = {"use_reentrant": False, "preserve_rng_state": drawn}
                x = checkpoint(layer, x, given, extras, cross, **options)
            else:
                x = layer(x, given, extras, cross)
            states.append(x)
            records.append((own, crossed))
        states[-1] = x = self.LayerNorm(x)
        return EncoderOutput(
            last_hidden_state=x,
            past_key_values=_cached(records) if asked.cache else None,
            hidden_states=tuple(states) if asked.states else None,
            attentions=self._whole([own for own, _ in records]) if asked.weights else None,
            cross_attentions=self._whole([crossed for _, crossed in records])
            if asked.weights and asked.source is not None
            else None,
        )

    def _whole(self, records: list[AttentionRecord]) -> tuple[Tensor, ...]:
        """Attention weights of all heads, on every rank."""
        weights = [record.weights for record in records if record.weights is not None]
        if self.group is None:
            return tuple(weights)
        return tuple(
            gather_from_group(w.movedim(1, -1), self.group).movedim(-1, 1) for w in weights
        )


def _pair(past: Sequence[Tensor | None]) -> tuple[Tensor, Tensor] | None:
    return None if not past or past[0] is None else (past[0], past[1])  # pyright: ignore


def _cached(records: list[tuple[AttentionRecord, AttentionRecord]]) -> Any:
    """Of each layer (key, value), and those of its cross attention where it had one."""
    return tuple(
        tuple(
            tensor
            for record in layer
            for tensor in (record.keys, record.values)
            if tensor is not None
        )
        for layer in records
    )


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
        *,
        dropout_key: int | None = None,
    ) -> EncoderOutput | tuple[Any, ...]:
        """input_ids, token_type_ids, position_ids: (batch, seq_len); inputs_embeds: (batch,
        seq_len, hidden_size) in place of input_ids; attention_mask: (batch, earlier + seq_len) or
        (batch, seq_len, earlier + seq_len), the latter as it stands for a decoder, too; head_mask:
        (heads,) or (layers, heads), numbers that attention weights are multiplied by;
        encoder_hidden_states: (batch, encoder_len, hidden_size) with its mask. Vectors of another
        dtype than the weights' are cast to that. dropout_key: that of a head's pass.

        Returns `last_hidden_state` (batch, seq_len, hidden_size), `pooler_output` (batch,
        hidden_size), `past_key_values` (a `KeyValues`), `hidden_states` (layers + 1 of them, the
        last one normed), `attentions` and `cross_attentions` (each layer's (batch, heads, queries,
        keys)). Raises ValueError for what does not fit together or is unsupported.
        """
        key = self.dropout_key() if dropout_key is None else dropout_key
        given = inputs.checked(
            self.config,
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
        past = self._past(past_key_values, given)
        positions, tokens = inputs.positions(self.config, given, past)
        x = self.embeddings(given.ids, given.embeds, positions, given.token_types, key)
        visibility, asked = self._asked(given, past, x)
        out: Any = self.encoder(x, Pass(visibility, key), asked)
        made = EncoderOutput(
            last_hidden_state=out.last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(out.last_hidden_state),
            past_key_values=KeyValues(out.past_key_values, tokens) if given.cache else None,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            cross_attentions=out.cross_attentions,
        )
        return self.returned(made, return_dict)

    def _past(self, past: Any, given: inputs.Inputs) -> KeyValues | None:
        """`past_key_values`, checked against the layers."""
        source = given.encoder_states
        return checked(
            past,
            given.batch,
            [_heads(layer) for layer in self.encoder.layer],
            self.config.hidden_size // self.config.num_attention_heads,
            source=None if source is None else source.shape[1],
        )

    def _asked(
        self, given: inputs.Inputs, past: KeyValues | None, x: Tensor
    ) -> tuple[Visibility, Asked]:
        """What the tokens of x may attend to, and what else the layers are given."""
        rows, length, device = given.batch, given.length, x.device
        earlier = 0 if past is None else past.get_seq_length()
        shape, causal = (rows, length, earlier + length), self.config.is_decoder
        visibility = masked_by("attention_mask", given.mask, shape, causal, device, read=False)
        source, seen = None, None
        if given.encoder_states is not None:
            source = given.encoder_states.to(x.dtype)
            shape = (rows, length, source.shape[1])
            name = "encoder_attention_mask"
            seen = masked_by(name, given.encoder_mask, shape, device=device, read=False)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        return visibility, Asked(
            source, seen, past, given.head_mask, given.cache, given.weights, given.states, recompute
        )


def _heads(layer: Any) -> tuple[int, int]:
    """Of a layer's attention and cross attention on this rank."""
    cross = getattr(layer, "crossattention", None)
    return layer.attention.self.heads, 0 if cross is None else cross.self.heads


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
        head = self.new_head()
        if isinstance(head, LinearHead):
            self.dropout = head.dropout  # where transformers has it
        self.add_module(self.head_name, head)
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
