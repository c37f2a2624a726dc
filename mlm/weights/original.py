"""Checkpoints of fairseq, the code that XLM-R XL was trained with, whole or split by tensor rank.

A file holds `args` or `cfg` of its training and, under `model`, tensors by fairseq's names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlm.errors import DataError
from mlm.weights.original_config import config_values, settings
from mlm.weights.original_parts import ENCODER, JoinedTensor, PartFiles
from mlm.weights.source import Weights

LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
HEAD, CLASSIFIERS = "lm_head.", "classification_heads."
IN_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.self_attn_layer_norm",
    "final_layer_norm": "LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
OUTSIDE = {
    "sentence_encoder.embed_tokens.weight": "roberta.embeddings.word_embeddings.weight",
    "sentence_encoder.embed_positions.weight": "roberta.embeddings.position_embeddings.weight",
    "sentence_encoder.layer_norm.weight": "roberta.encoder.LayerNorm.weight",
    "sentence_encoder.layer_norm.bias": "roberta.encoder.LayerNorm.bias",
    "lm_head.dense.weight": "lm_head.dense.weight",
    "lm_head.dense.bias": "lm_head.dense.bias",
    "lm_head.layer_norm.weight": "lm_head.layer_norm.weight",
    "lm_head.layer_norm.bias": "lm_head.layer_norm.bias",
    "lm_head.weight": "lm_head.decoder.weight",
    "lm_head.bias": "lm_head.bias",
}
TYPES = "roberta.embeddings.token_type_embeddings.weight"  # zeros: fairseq has none
WORDS, COPY = OUTSIDE["sentence_encoder.embed_tokens.weight"], OUTSIDE["lm_head.weight"]
POSITIONS = OUTSIDE["sentence_encoder.embed_positions.weight"]


@dataclass(frozen=True)
class Original:
    """An original checkpoint under the published names.

    head: the class of its weights; config: values of `config.json`
    notes: sentences for the user about what was decided
    """

    weights: Weights
    head: str
    config: dict[str, Any]
    notes: list[str]


def open_original(path: Path, head: str | None = None) -> Original:
    """Opens a checkpoint: a `.pt` file, one of the parts of a split one, or the folder of either.

    head: the name of a classification head in it, for a model for sequence classification in place
        of the masked language model

    The parts of a tensor are joined when it is read. Raises DataError.
    """
    parts = PartFiles(path)
    first, found = parts.files[0], settings(parts.states[0])
    names, unused = _published(first, parts.tensors[0], head)
    joined = {ours: parts.joined(theirs) for ours, theirs in names.items()}
    shape = _shape(first, joined)
    values = config_values(path, found, shape, classifies=head is not None)
    if head is not None:
        values["num_labels"] = joined["classifier.out_proj.bias"].shape[0]
    return Original(
        _weights(path, first, joined, shape["hidden_size"]),
        "XLMRobertaXLForMaskedLM" if head is None else "XLMRobertaXLForSequenceClassification",
        values,
        _notes(path, parts.tensors[0], found, unused),
    )


def _published(
    file: Path, tensors: dict[str, Tensor], head: str | None
) -> tuple[dict[str, str], list[str]]:
    """Published name -> original name, and the names of the unused classification heads."""
    names, heads = {}, {}
    for name in tensors:
        if name == f"{ENCODER}version":
            continue
        if name.startswith(CLASSIFIERS):
            classifier, rest = name.removeprefix(CLASSIFIERS).split(".", 1)
            heads.setdefault(classifier, {})[f"classifier.{rest}"] = name
        elif name in OUTSIDE:
            names[OUTSIDE[name]] = name
        elif (layer := LAYER.fullmatch(name.removeprefix(ENCODER))) and layer[2] in IN_LAYER:
            names[f"roberta.encoder.layer.{layer[1]}.{IN_LAYER[layer[2]]}.{layer[3]}"] = name
        else:
            raise DataError(
                f"{file} has {name}, which models of the type xlm-roberta-xl do not have; "
                f"give a checkpoint of XLM-R XL or XXL"
            )
    if head is not None and head not in heads:
        raise DataError(
            f"{file} has no classification head {head}; it has {', '.join(heads) or 'none'}"
        )
    if head is not None:
        names = {name: old for name, old in names.items() if not name.startswith(HEAD)}
        names |= heads.pop(head)
    for name in _expected(names, head):
        if name not in names:
            raise DataError(
                f"{file} has no tensor for {name}; give a whole checkpoint of XLM-R XL or XXL"
            )
    return names, list(heads)


def _expected(names: dict[str, str], head: str | None) -> Iterator[str]:
    numbers = [int(name.split(".")[3]) for name in names if ".layer." in name]
    for layer in range(max(numbers, default=0) + 1):
        for local in IN_LAYER.values():
            for kind in ("weight", "bias"):
                yield f"roberta.encoder.layer.{layer}.{local}.{kind}"
    yield from (name for name in OUTSIDE.values() if head is None or not name.startswith(HEAD))
    if head is not None:
        for local in ("dense", "out_proj"):
            yield from (f"classifier.{local}.weight", f"classifier.{local}.bias")


def _shape(file: Path, joined: dict[str, JoinedTensor]) -> dict[str, int]:
    """The model's sizes; raises DataError for the first tensor whose shape does not follow them."""
    (vocab, hidden), positions = joined[WORDS].shape, joined[POSITIONS].shape[0]
    layers = 1 + max(int(name.split(".")[3]) for name in joined if ".layer." in name)
    inner = joined["roberta.encoder.layer.0.intermediate.dense.bias"].shape[0]
    for name, each in joined.items():
        expected = {
            WORDS: (vocab, hidden),
            COPY: (vocab, hidden),
            POSITIONS: (positions, hidden),
            "lm_head.bias": (vocab,),
            "classifier.out_proj.weight": (each.shape[0], hidden),
            "classifier.out_proj.bias": each.shape[:1],
        }.get(name)
        if expected is None:
            rows = inner if "intermediate" in name else hidden
            columns = inner if ".output.dense" in name and "attention" not in name else hidden
            expected = (rows,) if "bias" in name or "orm" in name else (rows, columns)
        if each.shape != expected:
            raise DataError(
                f"{file} has {each.name} with the shape {each.shape}, and the others require "
                f"{expected}; give a whole checkpoint of XLM-R XL or XXL"
            )
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
    }


def _weights(origin: Path, first: Path, joined: dict[str, JoinedTensor], hidden: int) -> Weights:
    once = {name: each for name, each in joined.items() if name != COPY}
    dtype = joined[WORDS].dtype
    shapes = {name: each.shape for name, each in once.items()} | {TYPES: (1, hidden)}
    dtypes = {name: each.dtype for name, each in once.items()} | {TYPES: dtype}

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        if name == TYPES:
            shape = [stop - start if each == dim else size for each, size in enumerate((1, hidden))]
            return torch.zeros(shape, dtype=dtype, device="cpu")
        return joined[name].part(dim, start, stop)

    copies = {WORDS: COPY} if COPY in joined else {}
    return Weights(origin, shapes, dtypes, read_part, dict.fromkeys(shapes, first), copies)


def _notes(
    path: Path, tensors: dict[str, Tensor], found: dict[str, Any], unused: list[str]
) -> list[str]:
    notes = []
    version = tensors.get(f"{ENCODER}version")
    if version is None or float(version.reshape(-1)[0]) < 2:
        notes.append(
            f"{path} lacks sentence_encoder.version 2 or later, without which the original code "
            f"silently skips the final layer norm; the norm is in the file, and is kept."
        )
    if found.get("activation_dropout"):
        notes.append(
            f"{path} was trained with activation_dropout={found['activation_dropout']}, which "
            f"models here lack; it matters in training only."
        )
    if unused:
        notes.append(
            f"{path} also has classification heads ({', '.join(unused)}), which are skipped; name "
            f"one to import it in place of the language model's head."
        )
    return notes
