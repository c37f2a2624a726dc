"""The sentencepiece model that a `tokenizer.json` was made of.

transformers 5 saves a tokenizer without the model itself. Pieces, scores and the rules of the
normalisation are all in the file, so that the model made of them gives the same ids.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mlm.errors import DataError
from mlm.text.ids import BOS, EOS, FIRST_PIECE, PAD, SPACE, UNK

HEAD = ("truncation", "padding", "added_tokens")  # what stands before the vocabulary
# What may stand beside the rules: it only does on graphemes what sentencepiece does without them.
NORMALIZERS = {"Precompiled", "Replace", "NFC", "Strip"}


def sentencepiece_model(path: Path) -> bytes:
    """The model of a `tokenizer.json`; raises DataError unless it is one like XLM-R's."""
    try:
        return _model(json.loads(path.read_text("utf-8"))).SerializeToString(deterministic=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"{path} holds no tokenizer like XLM-R's ({error}); put sentencepiece.bpe.model beside "
            f"it, from where the model came from"
        ) from None


def read_head(path: Path) -> dict[str, Any]:
    """The values of HEAD, without reading the megabytes behind them; raises DataError."""
    found = {}
    try:
        text = path.read_text("utf-8")
        for name in HEAD:
            if place := re.search(rf'"{name}":\s*', text):
                found[name], _ = json.JSONDecoder().raw_decode(text, place.end())
    except (OSError, ValueError):
        raise DataError(f"{path} is damaged; copy it again") from None
    return found


def _model(values: dict[str, Any]) -> ModelProto:
    vocabulary = values["model"]["vocab"]
    if values["model"]["type"] != "Unigram":
        raise ValueError(f"its model is of the type {values['model']['type']}")
    names = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>", -1: "<mask>"}
    for id, name in names.items():
        if vocabulary[id][0] != name:
            raise ValueError(f"its id {id} is {vocabulary[id][0]!r} and not {name!r}")
    found = _steps(values.get("pre_tokenizer"))
    if not any(step["type"] == "Metaspace" and step["replacement"] == SPACE for step in found):
        raise ValueError("it puts no blank before words")
    steps = _steps(values.get("normalizer"))
    if others := {step["type"] for step in steps} - NORMALIZERS:
        raise ValueError(f"it normalises by {min(others)}")

    model = ModelProto()
    kinds = {"<unk>": model.SentencePiece.UNKNOWN}
    for piece in ("<unk>", "<s>", "</s>"):
        model.pieces.add(piece=piece, type=kinds.get(piece, model.SentencePiece.CONTROL), score=0.0)
    for piece, score in vocabulary[FIRST_PIECE:-1]:
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.vocab_size = len(model.pieces)
    rules = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    model.normalizer_spec.name = "nmt_nfkc" if rules else "identity"
    model.normalizer_spec.precompiled_charsmap = base64.b64decode("".join(rules[:1]))
    return model


def _steps(value: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, which may be none, one or several."""
    if value is None:
        return []
    return value.get("normalizers") or value.get("pretokenizers") or [value]
