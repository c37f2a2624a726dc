"""Floating-point operations of the model, as the arithmetic needs them and no more.

A multiply-add counts two. Only products of matrices count. The head counts on masked positions
only: logits that are never made earn no credit.
"""

from mlm.model.config import ModelConfig


def layer_flops(config: ModelConfig, seq_len: int) -> float:
    """Forward FLOPs of one encoder layer on one sequence."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return 2.0 * seq_len * (4 * hidden**2 + 2 * hidden * inner) + 4.0 * seq_len**2 * hidden


def transform_flops(config: ModelConfig, masked: int) -> float:
    """Forward FLOPs of the head's dense layer on `masked` positions."""
    return 2.0 * masked * config.hidden_size**2


def decoder_flops(config: ModelConfig, masked: int) -> float:
    """Forward FLOPs of the decoder over the vocabulary on `masked` positions."""
    return 2.0 * masked * config.hidden_size * config.padded_vocab_size()


def training_flops_per_token(config: ModelConfig, seq_len: int, masked: int) -> float:
    """Forward and backward FLOPs per token of a sequence with `masked` masked positions.

    The backward pass costs twice the forward one; recomputed activations earn no credit.
    """
    forward = (
        config.num_hidden_layers * layer_flops(config, seq_len)
        + transform_flops(config, masked)
        + decoder_flops(config, masked)
    )
    return 3.0 * forward / seq_len
