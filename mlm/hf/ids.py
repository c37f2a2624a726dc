"""Real text as ids, and the comparison of the ids of two tokenizers."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import tokenizers
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from mlm.errors import UserError
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.plain import Sample
from mlm.text.corpus import languages, sample_corpus
from mlm.text.documents import documents
from mlm.tokenizer.charsmap import normalizer
from mlm.tokenizer.ids import FIRST_PIECE, JSON_FILE, SHIFT, UNK
from mlm.tokenizer.tokenizer import Tokenizer

LANGUAGES = ("en", "de", "ru", "ar", "hi", "zh-Hans")  # whose logits are compared
TOKENS = 48  # of a text at most
SOURCE = 5  # hidden states that a decoder attends to
Encode = Callable[[str], list[int]]  # a line to its ids, without special ones
TIE = 1e-5  # relative difference of two segmentations' scores that fp32 does not resolve


@cache
def lines() -> dict[str, str]:
    """The first line of every language of the corpus in the package."""
    return {name: next(documents(text))[0] for name, text in languages(sample_corpus()).items()}


def sample_of(tokenizer: Tokenizer | None, config: XLMRobertaXLConfig) -> Sample:
    """Text of several languages as input for a model; random ids where it has no tokenizer."""
    limit = min(TOKENS, config.max_position_embeddings - config.pad_token_id - 1)
    generator = torch.Generator().manual_seed(0)
    if tokenizer is None:
        lengths = torch.linspace(limit, max(1, limit // 4), len(LANGUAGES)).long()
        ids = torch.randint(config.vocab_size, (len(LANGUAGES), limit), generator=generator)
        ids[ids == config.pad_token_id] = (config.pad_token_id + 1) % config.vocab_size
        ids[torch.arange(limit) >= lengths[:, None]] = config.pad_token_id
    else:
        ids, lengths = padded(tokenizer, [lines()[name] for name in LANGUAGES], limit)
    types = torch.arange(ids.shape[1]).expand(ids.shape) % config.type_vocab_size
    source = None
    if config.add_cross_attention:
        source = torch.randn(len(ids), SOURCE, config.hidden_size, generator=generator)
    return Sample(ids, lengths, types, source)


def padded(tokenizer: Tokenizer, texts: list[str], limit: int) -> tuple[Tensor, Tensor]:
    """Ids of texts as `<s> text </s>`, truncated to `limit` tokens and padded: (texts, longest),
    and the lengths (texts,)."""
    rows = [ids[: limit - 2].tolist() for ids in tokenizer.encode(texts)]
    rows = [[tokenizer.bos, *row, tokenizer.eos] for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), tokenizer.pad)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths


def check_ids(ours: Tokenizer, theirs: tokenizers.Tokenizer, texts: dict[str, str]) -> None:
    """Raises UserError where a tokenizer of the tokenizers library has other ids than ours."""
    if (theirs.get_vocab_size(), theirs.token_to_id("<mask>")) != (ours.size, ours.mask):
        raise UserError(
            f"the exported tokenizer has {theirs.get_vocab_size()} ids in place of {ours.size}, so "
            f"nothing was written; check {ours.model_path} for a piece that occurs twice"
        )
    if language := _first_difference(ours, lambda text: _ids_of(theirs, text), texts):
        raise UserError(
            f"the exported tokenizer gives other ids than sentencepiece to a line of "
            f"{language}, {texts[language][:40]!r}, so nothing was written; report this with "
            f"the model {ours.model_path}"
        )


def check_source_ids(made: Tokenizer, path: Path, texts: dict[str, str]) -> None:
    """Raises UserError where a tokenizer gives other ids than a file of its source: a sentencepiece
    model or a `tokenizer.json`, read by their libraries."""
    encode = _library(made, path) if path.name == JSON_FILE else _sentencepiece(path)
    if language := _first_difference(made, encode, texts):
        raise UserError(
            f"{path} gives other ids than the tokenizer that was imported to a line of {language}, "
            f"{texts[language][:40]!r}, so nothing was written; give the files of one tokenizer, "
            f"and report this if they are"
        )


def _sentencepiece(path: Path) -> Encode:
    """A sentencepiece model, whose ids are mapped to XLM-R's."""
    processor = SentencePieceProcessor(model_proto=path.read_bytes())
    return lambda text: [id + SHIFT if id else UNK for id in processor.encode(text)]


def _library(made: Tokenizer, path: Path) -> Encode:
    """A `tokenizer.json` without tokens that users added, and normalised as sentencepiece does.

    The library applies its rules to grapheme clusters instead; that the rules are equal was checked
    before.
    """
    values = json.loads(path.read_text("utf-8"))
    known = made.special.values()
    values["added_tokens"] = [each for each in values["added_tokens"] if each["id"] in known]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(values))
    theirs.normalizer = normalizer(made.charsmap)
    return lambda text: _ids_of(theirs, text)


def _ids_of(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _first_difference(ours: Tokenizer, encode: Encode, texts: dict[str, str]) -> str | None:
    """The first language for whose line the two give different ids; None: there is none."""
    for language, ids in zip(texts, ours.encode(list(texts.values())), strict=True):
        found = encode(texts[language])
        if found != ids.tolist() and not tie(ours, found, ids.tolist()):
            return language
    return None


def tie(tokenizer: Tokenizer, found: list[int], ids: list[int]) -> bool:
    """Whether two segmentations of one text have equal scores up to rounding in fp32.

    Sentencepiece adds scores in fp32 and the tokenizers library in fp64, so that rounding decides
    ties; one line in some hundred thousand differs for this reason.
    """
    if "".join(tokenizer.pieces(found)) != "".join(tokenizer.pieces(ids)):
        return False
    processor = SentencePieceProcessor(model_proto=tokenizer.model)
    one, two = (
        sum(processor.get_score(id - SHIFT) for id in row if id >= FIRST_PIECE)
        for row in (found, ids)
    )
    return abs(one - two) <= TIE * abs(two)
