"""The sentencepiece model that a `tokenizer.json` was made of.

transformers 5 saves a tokenizer without the model itself. Pieces, scores and the rules of the
normalisation are all in the file, so that the model made of them gives the same ids. A file with
steps that sentencepiece does not have, or without some that it has, would give others: it is
refused.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mlm.errors import DataError
from mlm.tokenizer.charsmap import APART, SINGLE
from mlm.tokenizer.ids import BOS, EOS, FIRST_PIECE, PAD, SPACE, UNK
from mlm.tokenizer.model_proto import ModelProto

HEAD = ("truncation", "padding", "added_tokens")  # keys before the vocabulary
# Steps besides the rules that only do on graphemes what sentencepiece does without them.
NORMALIZERS = {"Precompiled", "Replace", "NFC", "Strip"}
BLANKS = r" {2,}"  # which become one blank, or its piece
ENDS = r"\A +| +\z"
MISSING = "put sentencepiece.bpe.model beside it, from where the model came from"


def sentencepiece_model(path: Path, remedy: str = MISSING) -> bytes:
    """The model of a `tokenizer.json`; raises DataError with the remedy if it is unlike XLM-R's."""
    try:
        return _model(json.loads(path.read_text("utf-8"))).SerializeToString(deterministic=True)
    except (KeyError, IndexError, TypeError, AttributeError):
        error: Exception | str = "some of it is missing"
    except (OSError, ValueError, RuntimeError) as found:
        error = found
    raise DataError(f"{path} holds no tokenizer like XLM-R's ({error}); {remedy}")


def read_head(path: Path) -> dict[str, Any]:
    """The values of HEAD, without parsing the megabytes after them; raises DataError."""
    found = {}
    try:
        text = path.read_text("utf-8")
        for name in HEAD:
            if place := re.search(rf'"{name}":\s*', text):
                found[name], _ = json.JSONDecoder().raw_decode(text, place.end())
    except (OSError, ValueError):
        raise DataError(f"{path} is damaged; copy it again") from None
    return found


def _model(values: dict[str, Any]) -> Any:
    vocabulary = values["model"]["vocab"]
    if values["model"]["type"] != "Unigram":
        raise ValueError(f"its model is of the type {values['model']['type']}")
    names = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>", -1: "<mask>"}
    for id, name in names.items():
        if vocabulary[id][0] != name:
            raise ValueError(f"its id {id} is {vocabulary[id][0]!r} and not {name!r}")
    if values["model"].get("unk_id") != UNK or values["model"].get("byte_fallback"):
        raise ValueError("text without a piece is not <unk>")
    steps = _steps(values.get("normalizer"))
    _check_steps(steps, _steps(values.get("pre_tokenizer")))

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


def _check_steps(steps: list[dict[str, Any]], cuts: list[dict[str, Any]]) -> None:
    """Raises ValueError unless normaliser and pre-tokenizer do what sentencepiece does: its rules,
    one blank for several, none at the ends, and one before the first word."""
    if others := {step["type"] for step in steps} - NORMALIZERS:
        raise ValueError(f"it normalises by {min(others)}")
    if others := {step["type"] for step in cuts} - {"WhitespaceSplit", "Metaspace"}:
        raise ValueError(f"it cuts by {min(others)}")
    spaces = [step for step in cuts if step["type"] == "Metaspace"]
    if not spaces or not all(map(_puts_blanks, spaces)):
        raise ValueError("it puts no blank before words")
    replaced = [step for step in steps if step["type"] == "Replace"]
    for step in replaced:
        if not _without_effect(step):
            raise ValueError(f"it replaces {step['pattern']} by {step['content']!r}")
    rules = any(step["type"] == "Precompiled" for step in steps)
    words = any(step["type"] == "WhitespaceSplit" for step in cuts)
    blanks = any(step["pattern"] == {"Regex": BLANKS} for step in replaced)
    if not rules and words:  # where no rule makes blanks of tabs and line ends
        raise ValueError("it cuts at white space, of which no rule of its normaliser makes blanks")
    if not blanks and not words:
        raise ValueError("its normaliser leaves several blanks as they are")


def _puts_blanks(step: dict[str, Any]) -> bool:
    """Whether a step puts a blank before every word, in the keys of new or of old files."""
    always = step.get("prepend_scheme", "always") == "always"
    return always and step.get("add_prefix_space", True) and step["replacement"] == SPACE


def _without_effect(step: dict[str, Any]) -> bool:
    """Whether a step replaces blanks that sentencepiece removes, too, or one of the marks that an
    export inserts and removes again."""
    pattern, content = step["pattern"], step["content"]
    if content in (APART, SINGLE) or pattern in ({"String": APART}, {"String": SINGLE}):
        return True
    blanks = pattern == {"Regex": BLANKS} and content in (" ", SPACE)
    return blanks or (pattern == {"Regex": ENDS} and not content)


def _steps(value: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer: none, one or several."""
    if value is None:
        return []
    return value.get("normalizers") or value.get("pretokenizers") or [value]
