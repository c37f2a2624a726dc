"""The files of a tokenizer in a Hugging Face folder, which give the same ids as ours."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from mlm.errors import DataError
from mlm.tokenizer.charsmap import normalizer
from mlm.tokenizer.ids import (
    BOS,
    EOS,
    FIRST_PIECE,
    JSON_FILE,
    MODEL_FILE,
    PAD,
    SHIFT,
    SPACE,
    UNK,
)
from mlm.tokenizer.model_proto import ModelProto
from mlm.tokenizer.tokenizer import Tokenizer

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
NO_LIMIT = 10**30  # model_max_length of transformers where the length is unknown
ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def write_tokenizer(tokenizer: Tokenizer, max_tokens: int, folder: Path) -> None:
    """Writes the sentencepiece model, tokenizer.json, its config and the map of special tokens.

    max_tokens: the length that transformers truncates to on request
    Raises DataError for a model that these files cannot express.
    """
    (folder / MODEL_FILE).write_bytes(tokenizer.model)
    (folder / JSON_FILE).write_text(backend(tokenizer).to_str(pretty=False), encoding="utf-8")
    special = {
        str(id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for id, token in _special_tokens(tokenizer).items()
    }
    config: dict[str, Any] = {
        "added_tokens_decoder": special,
        **ROLES,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        # Not XLMRobertaTokenizer: for that name transformers makes a normaliser of its own, which
        # gives other ids where a letter has several marks (Yoruba, Vietnamese).
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / CONFIG, config)
    _write_json(folder / SPECIAL, {**ROLES, "mask_token": special[str(tokenizer.mask)]})


def backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer of the tokenizers library, which transformers loads unchanged.

    As in the published one, what is written like a special token in a text is that token.
    """
    model = _sentencepiece_model(tokenizer)
    pieces = [(piece.piece, piece.score) for piece in model.pieces[FIRST_PIECE - SHIFT :]]
    special = _special_tokens(tokenizer)
    first = [(special[id].content, 0.0) for id in (BOS, PAD, EOS, UNK)]
    vocabulary = [*first, *pieces, (special[tokenizer.mask].content, 0.0)]
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=UNK, byte_fallback=False))
    made.normalizer = normalizer(model.normalizer_spec.precompiled_charsmap)
    across = any(SPACE in piece[1:] for piece, _ in pieces)  # some pieces span words
    made.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always", split=not across)
    made.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    made.add_special_tokens(list(special.values()))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", BOS), ("</s>", EOS)],
    )
    return made


def _special_tokens(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """The special tokens by id. A blank before `<mask>` belongs to it, as in the published one."""

    def token(text: str) -> AddedToken:
        return AddedToken(text, lstrip=text == "<mask>", normalized=False, special=True)

    names = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>", tokenizer.mask: "<mask>"}
    return {id: token(text) for id, text in names.items()}


def check_publishable(tokenizer: Tokenizer) -> None:
    """Raises DataError for a model that a tokenizer.json cannot express."""
    _sentencepiece_model(tokenizer)


def _sentencepiece_model(tokenizer: Tokenizer) -> Any:
    """The parsed model; raises as `check_publishable`."""
    model = ModelProto.FromString(tokenizer.model)
    trained, normalised = model.trainer_spec, model.normalizer_spec
    pieces = model.pieces[FIRST_PIECE - SHIFT :]
    asked = {
        "is not of the type unigram": trained.model_type != trained.UNIGRAM,
        "puts the space after a word": trained.treat_whitespace_as_suffix,
        "has pieces that are bytes, unused or user-defined": any(
            piece.type != piece.NORMAL for piece in pieces
        ),
        "has a normalisation other than XLM-R's": not (
            normalised.add_dummy_prefix
            and normalised.remove_extra_whitespaces
            and normalised.escape_whitespaces
        ),
    }
    for what, found in asked.items():
        if found:
            raise DataError(
                f"the sentencepiece model {tokenizer.model_path} {what}, which a tokenizer.json "
                f"like XLM-R's cannot express; train on one that `mlm tokenizer` made"
            )
    return model


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
