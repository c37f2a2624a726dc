"""The masked language model of pretraining as one ordered list of layers."""

from mlm.model.config import ModelConfig
from mlm.model.encoder import Fill, encoder_layers, words_layer
from mlm.model.flops import decoder_flops, transform_flops
from mlm.model.heads import MaskedLMHead, masked_lm_loss
from mlm.model.initial import initialise
from parallel.groups import Group
from parallel.stages import StageLayer


def masked_lm_layers(
    config: ModelConfig,
    *,
    group: Group = None,
    seed: int = 0,
    attention: str = "auto",
    seq_len: int = 512,
    masked: int = 77,
    fill: Fill | None = None,
) -> list[StageLayer]:
    """The list that the plain and the pipelined model are both made from.

    group: splits every layer; seed: of the initial weights, which do not depend on the group;
    seq_len and masked (positions per sequence) weigh the layers against each other; fill: gives
    a module, by its canonical name, its weights in place of initial ones
    """
    hidden, vocab = config.hidden_size, config.padded_vocab_size()
    fill = fill or (lambda module, name: initialise(module, name, config, seed))
    layers = encoder_layers(config, fill, group=group, attention=attention, seq_len=seq_len)
    layers += [
        StageLayer(
            "lm_head",
            lambda: fill(MaskedLMHead(config, group), "lm_head"),
            hidden * (hidden + 3) + vocab,
            transform_flops(config, masked),
            joined=True,
        ),
        words_layer(
            config,
            group,
            fill,
            decoder_flops(config, masked),
            masked_lm_loss,
            tied="words",
            joined=True,
        ),
    ]
    return layers
