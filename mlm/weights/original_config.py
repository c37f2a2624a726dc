"""The settings of an original checkpoint, as values of `config.json`."""

import argparse
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import omegaconf
from omegaconf.base import ContainerMetadata, Metadata

from mlm.errors import DataError

_SCALAR = np.float64().__reduce__()[0]  # how numpy pickles a number
# Classes in a checkpoint of fairseq beside tensors: settings and numbers, none of which is code.
PLAIN: list[Any] = [
    argparse.Namespace,
    omegaconf.DictConfig,
    omegaconf.ListConfig,
    omegaconf.AnyNode,
    ContainerMetadata,
    Metadata,
    (Any, "typing.Any"),
    defaultdict,
    dict,
    list,
    int,
    np.dtype,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "relu": "relu",
    "swish": "silu",
}
# Settings that change the architecture, with the values that are the family's.
REQUIRED = {
    "no_scale_embedding": (True,),
    "encoder_learned_pos": (True,),
    "layernorm_embedding": (False,),
    "encoder_normalize_before": (True,),
    "no_final_layer_norm": (False,),
    "no_token_positional_embeddings": (False,),
    "untie_weights_roberta": (False,),
    "adaptive_input": (False,),
}
PUBLISHED_HEADS = {2560: 32, 4096: 32}  # by hidden size


def settings(state: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings in a checkpoint: `args` of older ones, `cfg.model` of newer ones."""
    found = state.get("args")
    if found is None:
        found = state.get("cfg") or {}
        if isinstance(found, omegaconf.DictConfig):
            found = omegaconf.OmegaConf.to_container(found)
        found = found.get("model") if isinstance(found, Mapping) else None
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    return dict(found) if isinstance(found, Mapping) else {}


def config_values(
    path: Path, found: Mapping[str, Any], shape: Mapping[str, int], *, classifies: bool
) -> dict[str, Any]:
    """Values of `config.json`: sizes from the tensors (`shape`), the rest from the settings.

    shape: vocab_size, hidden_size, num_hidden_layers, intermediate_size, max_position_embeddings
    classifies: whether the model has a classification head

    Raises DataError where the settings are of another architecture or size than the tensors.
    """
    for name, allowed in REQUIRED.items():
        if name in found and found[name] not in allowed:
            raise DataError(
                f"{path} was trained with {name}={found[name]}, and a model of the type "
                f"xlm-roberta-xl has {allowed[0]} there; give a checkpoint of XLM-R XL or XXL"
            )
    for name, key in (
        ("encoder_layers", "num_hidden_layers"),
        ("encoder_embed_dim", "hidden_size"),
        ("encoder_ffn_embed_dim", "intermediate_size"),
    ):
        if found.get(name, shape[key]) != shape[key]:
            raise DataError(
                f"{path} was trained with {name}={found[name]}, and its tensors have {shape[key]}; "
                f"copy the checkpoint again from where it came"
            )
    values = {
        "model_type": "xlm-roberta-xl",
        **shape,
        "num_attention_heads": _heads(path, found, shape["hidden_size"]),
        "hidden_act": _activation(path, found, classifies),
        "hidden_dropout_prob": float(found.get("dropout", 0.1)),
        "attention_probs_dropout_prob": float(found.get("attention_dropout", 0.1)),
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "position_embedding_type": "absolute",
    }
    if classifies:
        values["classifier_dropout"] = float(found.get("pooler_dropout", 0.0))
    return values


def _heads(path: Path, found: Mapping[str, Any], hidden: int) -> int:
    heads = found.get("encoder_attention_heads", PUBLISHED_HEADS.get(hidden))
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise DataError(
            f"{path} has encoder_attention_heads={heads} and a hidden size of {hidden}, which must "
            f"be a multiple of it; give a checkpoint with the `args` or `cfg` of its training"
        )
    return heads


def _activation(path: Path, found: Mapping[str, Any], classifies: bool) -> str:
    name = found.get("activation_fn", "gelu")
    if name not in ACTIVATIONS:
        raise DataError(
            f"{path} was trained with activation_fn={name}, and {', '.join(ACTIVATIONS)} are "
            f"supported; give a checkpoint with one of these"
        )
    if not classifies and name != "gelu":
        raise DataError(
            f"{path} was trained with activation_fn={name}, also in the language model's head, "
            f"where the type xlm-roberta-xl always has gelu; name a classification head to import "
            f"that one, or give another checkpoint"
        )
    pooler = found.get("pooler_activation_fn", "tanh")
    if classifies and pooler != "tanh":
        raise DataError(
            f"{path} was trained with pooler_activation_fn={pooler}, and a classification head of "
            f"the type xlm-roberta-xl has tanh; give a checkpoint with that"
        )
    return ACTIVATIONS[name]
