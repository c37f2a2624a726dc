"""The masked language model of pretraining as one ordered list of layers."""

from collections.abc import Callable

from mlm.model.config import ModelConfig
from mlm.model.encoder import SetWeights, encoder_layers, words_layer
from mlm.model.flops import decoder_flops, transform_flops
from mlm.model.heads import MaskedLMHead, at_masked, masked_lm_loss
from mlm.model.initial import initialise
from mlm.model.options import LayerOptions
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer


def masked_lm_layers(
    config: ModelConfig,
    *,
    group: Group = None,
    seed: int = 0,
    attention: str = "auto",
    seq_len: int = 512,
    masked: int = 77,
    set_weights: SetWeights | None = None,
) -> list[StageLayer]:
    """The list that the plain and the pipelined model are both made from.

    group: splits every layer; seed: of the initial weights, which do not depend on the group;
    seq_len and masked (positions per sequence) are used only to estimate the FLOPs by which layers
    are divided among stages; set_weights: gives a module, by its canonical name, weights in place
    of initial ones
    """
    set_weights = set_weights or (lambda module, name: initialise(module, name, config, seed))
    options = LayerOptions(attention)
    layers = encoder_layers(config, set_weights, group=group, seq_len=seq_len, options=options)
    return layers + lm_head_layers(config, set_weights, group, masked, masked_lm_loss, at_masked)


def lm_head_layers(
    config: ModelConfig,
    set_weights: SetWeights,
    group: Group,
    positions: int,
    loss: Callable,
    features: Callable,
) -> list[StageLayer]:
    """The head over the vocabulary on `positions` of a sequence, and the tied word embeddings,
    where `loss` is taken of what `features` gives by the head."""
    hidden, vocab = config.hidden_size, config.padded_vocab_size()
    flops = decoder_flops(config, positions)
    return [
        StageLayer(
            "lm_head",
            lambda: set_weights(MaskedLMHead(config, group), "lm_head"),
            hidden * (hidden + 3) + vocab,
            transform_flops(config, positions),
            features,
            joined=True,
        ),
        words_layer(config, group, set_weights, flops, loss, tied="words", joined=True),
    ]
