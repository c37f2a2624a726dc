"""The encoder as a list of stage layers, to which a head appends its own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlm.batch.micro_batch import MicroBatch
from mlm.model.config import ModelConfig
from mlm.model.embeddings import PositionEmbeddings
from mlm.model.flops import layer_flops
from mlm.model.layer import EncoderLayer
from mlm.model.options import PRETRAINING, LayerOptions
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer
from parallel.tensor.layers import vocab_embedding

WORDS = "roberta.embeddings.word_embeddings"

SetWeights = Callable[[nn.Module, str], nn.Module]  # gives a module, by its name, its first weights


def word_embeddings(config: ModelConfig, group: Group) -> nn.Module:
    return vocab_embedding(
        config.padded_vocab_size(), config.hidden_size, group, padding_idx=config.pad_token_id
    )


def encoder_layers(
    config: ModelConfig,
    set_weights: SetWeights,
    *,
    group: Group = None,
    seq_len: int = 512,
    options: LayerOptions = PRETRAINING,
    tied: bool = True,
) -> list[StageLayer]:
    """Embeddings, layers and the final norm: token ids to (micro_batch, seq_len, hidden_size).

    tied: whether the head shares the word embeddings
    """

    def embed_positions() -> nn.Module:
        absolute = options.positions == "absolute"
        return set_weights(PositionEmbeddings(config, absolute), "roberta.embeddings")

    layers = [
        words_layer(config, group, set_weights, 0.0, _alone, tied="words" if tied else None),
        StageLayer(
            "roberta.embeddings",
            embed_positions,
            (config.max_position_embeddings + config.type_vocab_size) * config.hidden_size,
            0.0,
            joined=True,
        ),
    ]
    whole = count(lambda: EncoderLayer(config, 0, None, options))
    for index in range(config.num_hidden_layers):
        name = f"roberta.encoder.layer.{index}"

        def make(name=name, index=index):
            return set_weights(EncoderLayer(config, index, group, options), name)

        flops = layer_flops(config, seq_len)
        layers.append(StageLayer(name, make, whole, flops, recompute=True))
    norm = "roberta.encoder.LayerNorm"

    def final() -> nn.Module:
        return set_weights(nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps), norm)

    layers.append(StageLayer(norm, final, 2 * config.hidden_size, 0.0, _alone))
    return layers


def words_layer(
    config: ModelConfig,
    group: Group,
    set_weights: SetWeights,
    flops: float,
    forward: Callable,
    **kinds,
) -> StageLayer:
    """The word embeddings where `forward` uses them; with `tied`, places of one key share them."""
    return StageLayer(
        WORDS,
        lambda: set_weights(word_embeddings(config, group), WORDS),
        config.padded_vocab_size() * config.hidden_size,
        flops,
        forward,
        **kinds,
    )


def count(make: Callable[[], nn.Module]) -> int:
    """Parameters of a module, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def _alone(module: nn.Module, x: Tensor, batch: MicroBatch) -> Tensor:
    return module(x)
