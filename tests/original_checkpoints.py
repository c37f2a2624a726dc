"""Checkpoints as the original code writes them, made from tiny random models of transformers."""

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.family.family_fixtures import TINY, their_model

MASKED, SEQUENCES = "XLMRobertaXLForMaskedLM", "XLMRobertaXLForSequenceClassification"
SIZES = {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
ARGS = {
    "arch": "model_parallel_roberta_large",
    "encoder_layers": TINY["num_hidden_layers"],
    "encoder_embed_dim": TINY["hidden_size"],
    "encoder_ffn_embed_dim": TINY["intermediate_size"],
    "encoder_attention_heads": TINY["num_attention_heads"],
    "activation_fn": "gelu",
    "pooler_activation_fn": "tanh",
    "dropout": 0.25,
    "attention_dropout": 0.125,
    "pooler_dropout": 0.5,
    "max_positions": TINY["max_position_embeddings"] - 2,
    "encoder_normalize_before": True,
    "layernorm_embedding": False,
    "no_scale_embedding": True,
    "untie_weights_roberta": False,
    "data": ["/data/one", "/data/two"],
}
# Module of transformers -> module of the original, and how ranks split its weight and its bias.
WHOLE, ROWS, COLUMNS = None, 0, 1
IN_LAYER = {
    "attention.self.query": ("self_attn.q_proj", ROWS, ROWS),
    "attention.self.key": ("self_attn.k_proj", ROWS, ROWS),
    "attention.self.value": ("self_attn.v_proj", ROWS, ROWS),
    "attention.output.dense": ("self_attn.out_proj", COLUMNS, WHOLE),
    "attention.self_attn_layer_norm": ("self_attn_layer_norm", WHOLE, WHOLE),
    "LayerNorm": ("final_layer_norm", WHOLE, WHOLE),
    "intermediate.dense": ("fc1", ROWS, ROWS),
    "output.dense": ("fc2", COLUMNS, WHOLE),
}
OUTSIDE = {
    "roberta.embeddings.word_embeddings": ("encoder.sentence_encoder.embed_tokens", ROWS, WHOLE),
    "roberta.embeddings.position_embeddings": (
        "encoder.sentence_encoder.embed_positions",
        WHOLE,
        WHOLE,
    ),
    "roberta.encoder.LayerNorm": ("encoder.sentence_encoder.layer_norm", WHOLE, WHOLE),
    "lm_head.dense": ("encoder.lm_head.dense", ROWS, ROWS),
    "lm_head.layer_norm": ("encoder.lm_head.layer_norm", WHOLE, WHOLE),
    "lm_head.decoder": ("encoder.lm_head", ROWS, WHOLE),
    "classifier.dense": ("classification_heads.mnli.dense", ROWS, ROWS),
    "classifier.out_proj": ("classification_heads.mnli.out_proj", WHOLE, WHOLE),
}


@cache
def their_models() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """A masked language model and a classifier that share their encoder."""
    language = their_model(MASKED, **SIZES).eval()
    classifier = their_model(SEQUENCES, num_labels=3, **SIZES).eval()
    classifier.roberta.load_state_dict(language.roberta.state_dict())
    with torch.no_grad():
        for model in (language, classifier):
            model.roberta.embeddings.token_type_embeddings.weight.zero_()
        language.lm_head.bias.normal_()
    return language, classifier


def original_states(parts: int) -> list[dict[str, torch.Tensor]]:
    """The state of each rank under the original names; the decoder shares the embeddings."""
    language, classifier = their_models()
    states: list[dict[str, torch.Tensor]] = [{} for _ in range(parts)]

    def put(name: str, tensor: torch.Tensor, dim: int | None) -> None:
        slices = tensor.detach().chunk(parts, dim) if dim is not None else [tensor.detach()] * parts
        for state, part in zip(states, slices, strict=True):
            state[name] = part.clone()

    named = dict(language.state_dict()) | {
        name: tensor for name, tensor in classifier.state_dict().items() if "classifier" in name
    }
    del named["lm_head.bias"]
    for name, tensor in named.items():
        module, kind = name.rsplit(".", 1)
        if "token_type" in name:
            continue
        if ".layer." in name:
            number, local = module.removeprefix("roberta.encoder.layer.").split(".", 1)
            theirs, weight, bias = IN_LAYER[local]
            theirs = f"encoder.sentence_encoder.layers.{number}.{theirs}"
        else:
            theirs, weight, bias = OUTSIDE[module]
        put(f"{theirs}.{kind}", tensor, weight if kind == "weight" else bias)
    for state in states:
        state["encoder.lm_head.weight"] = state["encoder.sentence_encoder.embed_tokens.weight"]
        state["encoder.sentence_encoder.version"] = torch.tensor([3.0])
    return states


def checkpoint_of(state: dict[str, torch.Tensor], **changes) -> dict:
    """What the original trainer saves, with the settings as `args`."""
    return {
        "args": argparse.Namespace(**ARGS),
        "cfg": None,
        "model": state,
        "criterion": None,
        "optimizer_history": [{"optimizer_name": "FusedAdam", "num_updates": 500_000}],
        "task_state": {},
        "extra_state": {
            "metrics": {},
            "train_iterator": {"epoch": 1, "iterations_in_epoch": 3},
            "best": np.float64(1.5),
            "rng_tracker_states": {"model-parallel-rng": torch.zeros(8, dtype=torch.uint8)},
        },
        "last_optimizer_state": {"loss_scale": 128.0, "state": {0: torch.zeros(3)}},
    } | changes


def write(folder: Path, parts: int, name: str = "model") -> Path:
    """The checkpoint in a folder; the path of its file, or of the first part."""
    files = [folder / f"{name}.pt"]
    if parts > 1:
        files = [folder / f"{name}-model_part-{rank}.pt" for rank in range(parts)]
    for file, state in zip(files, original_states(parts), strict=True):
        torch.save(checkpoint_of(state), file)
    return files[0]


def change(folder: Path, do: Callable[[dict], None], parts: int = 1, which: int = 0) -> Path:
    """Writes a checkpoint of which one file is changed."""
    first = write(folder, parts)
    file = first if parts == 1 else folder / f"model-model_part-{which}.pt"
    values = torch.load(file, weights_only=False)
    do(values)
    torch.save(values, file)
    return first
