"""A trained model's candidates for `<mask>`, with the same ids as in transformers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlm.console import plain_console
from mlm.errors import UserError
from mlm.family.heads import MASKED_LM
from mlm.tokenizer.ids import BOS, EOS, FIRST_PIECE, JSON_FILE, MODEL_FILE, PAD, SPACE, UNK
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.opening import open_trained

MASK = "<mask>"
SPECIAL = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK}
_SPECIAL = re.compile(f"({'|'.join([MASK, *SPECIAL])})")

Candidates = list[tuple[str, float]]  # pieces, as the tokenizer has them, and their probabilities


@dataclass(frozen=True)
class Filled:
    """A text, the candidates for each mask, best first, and the text with the best of each."""

    text: str
    masks: list[Candidates]
    best: str


def fill(path: str, texts: Sequence[str], top: int = 5) -> list[list[Candidates]]:
    """Prints and returns candidates for the masks of each text, computed on the CPU in fp32.

    path: a run folder, a checkpoint, an import or a Hugging Face folder

    Returns `top` candidates for each mask of each text; a mask is filled while the others stay.
    Raises UserError for a text that is empty, has no `<mask>` or is longer than the model takes.
    """
    found = fill_masks(Path(path), texts, top)
    _show(found, plain_console())
    return [filled.masks for filled in found]


def fill_masks(path: Path, texts: Sequence[str], top: int) -> list[Filled]:
    """As `fill`, without printing anything."""
    trained = open_trained(path)
    if trained.head != MASKED_LM:
        raise UserError(
            f"{path} holds an {trained.head}, and masks are filled by an {MASKED_LM}; give one of "
            f"these"
        )
    tokenizer, limit = trained.tokenizer, trained.max_tokens
    if tokenizer is None:
        raise UserError(
            f"{path} has no tokenizer ({MODEL_FILE} or {JSON_FILE}), so a text cannot be read; put "
            f"one there, or import the model again with tokenizer=DIR"
        )
    choices = tokenizer.mask - FIRST_PIECE
    if not 1 <= top <= choices:
        raise UserError(
            f"top={top} is not between 1 and the {choices} pieces of the tokenizer; 5 is usual"
        )
    rows = [_checked_ids(tokenizer, text, limit) for text in texts]
    model = trained.model()
    found = []
    for text, row in zip(texts, rows, strict=True):
        places = [place for place, id in enumerate(row) if id == tokenizer.mask]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0, places]
        # Special and padded ids keep their share of the probability, and are never candidates.
        probabilities = logits.softmax(-1)[:, FIRST_PIECE : tokenizer.mask]
        best = probabilities.topk(top)
        masks = [
            list(zip(tokenizer.pieces([id + FIRST_PIECE for id in ids]), values, strict=True))
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        found.append(Filled(text, masks, _best(text, masks)))
    return found


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `<s> text </s>`, where the text may contain special ids as they are written.

    The parts between these are tokenized separately, as transformers does, so that every part
    begins with a space.
    """
    parts = [part for part in _SPECIAL.split(text) if part]
    special = {**SPECIAL, MASK: tokenizer.mask}
    ids = iter(tokenizer.encode([part for part in parts if part not in special]))
    row = [[special[part]] if part in special else next(ids).tolist() for part in parts]
    return [BOS, *(id for part in row for id in part), EOS]


def _checked_ids(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    if not text.strip():
        raise UserError(f"the text {text!r} is empty; give one that holds {MASK}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"the text {text!r} holds bytes that are not UTF-8; write it in UTF-8")
    ids = encode(tokenizer, text)
    if tokenizer.mask not in ids:
        raise UserError(f"the text {text!r} holds no {MASK}; write {MASK} where a word is to go")
    if len(ids) > limit:
        raise UserError(
            f"the text {text[:40]!r}... has {len(ids)} tokens, and the model has positions for "
            f"{limit}; give a shorter one"
        )
    return ids


def _best(text: str, masks: list[Candidates]) -> str:
    """The text with the first candidate of each mask; the candidate decides about a space."""
    first = iter(candidates[0][0].replace(SPACE, " ") for candidates in masks)
    return re.sub(rf"\s*{MASK}", lambda _: next(first), text).strip()


def _show(found: list[Filled], console: Console) -> None:
    """A table per text: a column of candidates for each mask, and the text filled."""
    for filled in found:
        console.print(Text(filled.text, style="bold"), soft_wrap=True)
        table = Table(box=None, pad_edge=True)
        for number in range(len(filled.masks)):
            table.add_column(f"{MASK} {number + 1}" if len(filled.masks) > 1 else MASK)
        for row in zip(*filled.masks, strict=True):
            table.add_row(*(Text(f"{value:6.1%}  {_shown(piece)}") for piece, value in row))
        console.print(table)
        console.print(Text(filled.best, style="italic"), soft_wrap=True)
        console.print()


def _shown(piece: str) -> str:
    """A piece in readable form, also where it is only a space."""
    return f"{SPACE} (a space)" if piece == SPACE else piece
