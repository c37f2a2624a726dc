"""The tokenizer: a sentencepiece unigram model with XLM-R's numbering of ids."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError

from mlm.errors import DataError
from mlm.tokenizer.ids import BOS, EOS, JSON_FILE, MODEL_FILE, PAD, UNK
from mlm.tokenizer.model_proto import ModelProto
from mlm.tokenizer.tokenizer_json import sentencepiece_model

PADDED_TO = 128
CONTROLS = 3  # the first pieces of a sentencepiece model: <unk>, <s>, </s>
FEW = 16  # lines that take less time one by one than the threads of a batch call take to start


class Tokenizer:
    """Text to ids and back. Made by `Tokenizer.load`."""

    bos, pad, eos, unk = BOS, PAD, EOS, UNK

    def __init__(self, model: bytes, model_path: Path) -> None:
        self.model, self.model_path = model, model_path
        self.hash = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.load_from_serialized_proto(_numbered(model))
        self.mask = self._processor.get_piece_size()
        self.size = self.mask + 1  # all real ids, <mask> included

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a folder: its sentencepiece model, or else the one that its
        `tokenizer.json` was made of; raises DataError for a folder without both."""
        path, made = Path(folder) / MODEL_FILE, Path(folder) / JSON_FILE
        if not path.is_file() and made.is_file():
            return cls(sentencepiece_model(made), made)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"the tokenizer {folder} has no {MODEL_FILE} that can be read "
                f"({error.strerror}); give the folder that `mlm tokenizer` wrote"
            ) from None
        try:
            why = _unlike_xlmr(model)
            if why is None:
                return cls(model, path)
        except (DecodeError, RuntimeError, ValueError):
            raise DataError(
                f"{path} is not a sentencepiece model; give the folder that `mlm tokenizer` wrote"
            ) from None
        raise DataError(f"{path} {why}; train a tokenizer with `mlm tokenizer`")

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has one of the files that `load` reads."""
        return any((folder / name).is_file() for name in (MODEL_FILE, JSON_FILE))

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether both give the same ids, even if one was made of a `tokenizer.json`."""
        return self.hash == other.hash or _rules(self.model) == _rules(other.model)

    def check_beside(self, folder: Path) -> None:
        """Raises DataError for a folder whose `tokenizer.json` gives other ids. Reads all of the
        file, which takes seconds for a large vocabulary."""
        path = folder / JSON_FILE
        if not path.is_file() or path == self.model_path:
            return
        away = f"move it away, so that {self.model_path} counts, or copy both again"
        if _rules(sentencepiece_model(path, away)) != _rules(self.model):
            raise DataError(
                f"{path} gives other ids than {self.model_path}; move the one away that the model "
                f"was not trained with"
            )

    @cached_property
    def charsmap(self) -> bytes:
        """The rules that text is normalised by, as sentencepiece keeps them."""
        return ModelProto.FromString(self.model).normalizer_spec.precompiled_charsmap

    @cached_property
    def padded_size(self) -> int:
        """The rows of an embedding for these ids: `size` up to a multiple of 128."""
        return -(-self.size // PADDED_TO) * PADDED_TO

    @cached_property
    def special(self) -> dict[str, int]:
        """The ids of the special tokens, by what they are written as."""
        return {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK, "<mask>": self.mask}

    @cached_property
    def vocabulary(self) -> list[str]:
        """The piece of every id."""
        return self.pieces(range(self.size))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every piece."""
        return {piece: id for id, piece in enumerate(self.vocabulary)}

    @cached_property
    def piece_lengths(self) -> np.ndarray:
        """The characters of the piece of every id, int64 (size,)."""
        return np.fromiter(map(len, self.vocabulary), np.int64, self.size)

    def encode(self, lines: list[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each line, int32, without special ids; one batch call to sentencepiece."""
        return self._encode(lines, threads, out_type="numpy")

    def encode_with_ends(self, lines: list[str], threads: int, arrays: bool) -> list[Any]:
        """The ids of each line with `<s>` before and `</s>` after them; as arrays or as lists."""
        out_type = "numpy" if arrays else int
        return self._encode(lines, threads, out_type=out_type, add_bos=True, add_eos=True)

    def _encode(self, lines: list[str], threads: int, **options: Any) -> list[Any]:
        if len(lines) < FEW:
            return [self._processor.encode(line, **options) for line in lines]
        return self._processor.encode(lines, num_threads=threads, **options)

    def surfaces(self, line: str) -> list[str]:
        """The characters that each id of a line stands for: its piece, unless it is `<unk>`."""
        return self._processor.encode(line, out_type=str)

    def normalised(self, line: str) -> tuple[str, list[int]]:
        """The normalised line that sentencepiece cuts into pieces, and the place of each character.

        A place is the index in `line` of the first character that the character was made of; one
        more place says where the last of these ends.
        """
        return self._processor.normalize(line, with_offsets=True)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. `<s>`, `<pad>` and `</s>` are skipped; `<mask>` is kept."""
        kept = [id for id in map(int, ids) if id not in (BOS, PAD, EOS)]
        return self._processor.decode_pieces(self.pieces(kept))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id; special ones as `<s>`. Raises IndexError at an id >= size."""
        mask, name = self.mask, self._processor.id_to_piece
        return ["<mask>" if id == mask else name(id) for id in map(int, ids)]


def _rules(model: bytes) -> tuple[Any, ...]:
    """All that the ids depend on: pieces with their scores, and how text is normalised."""
    made = ModelProto.FromString(model)
    spec = made.normalizer_spec
    blanks = spec.add_dummy_prefix, spec.remove_extra_whitespaces, spec.escape_whitespaces
    pieces = [(piece.piece, piece.score) for piece in made.pieces[CONTROLS:]]
    return pieces, spec.precompiled_charsmap, blanks


def _unlike_xlmr(model: bytes) -> str | None:
    """What a model has otherwise than XLM-R's ids need it; None: nothing. Raises ValueError."""
    pieces, kind = ModelProto.FromString(model).pieces, ModelProto.SentencePiece
    if not pieces:
        raise ValueError("other bytes may parse as an empty message")
    first = [piece.piece for piece in pieces[:CONTROLS]]
    kinds = [piece.type for piece in pieces[:CONTROLS]]
    if kinds != [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] or first[1:] != ["<s>", "</s>"]:
        return f"begins with the pieces {', '.join(first)}, and XLM-R's with <unk>, <s>, </s>"
    for id, piece in enumerate(pieces[CONTROLS:], CONTROLS):
        if piece.type in (kind.UNKNOWN, kind.CONTROL):
            return (
                f"has the special piece {piece.piece} with the id {id}, and XLM-R's has none but "
                f"<unk>, <s>, </s> (sentencepiece adds one for --pad_id or --control_symbols)"
            )
        if piece.piece in ("<pad>", "<mask>"):
            return f"has {piece.piece} as a piece of text, with the id {id}, which is a special one"
    return None


def _numbered(model: bytes) -> bytes:
    """The model with its pieces moved so that sentencepiece itself gives XLM-R's ids, except for
    `<mask>`, which it would take for a piece of text."""
    rest = ModelProto.FromString(model)
    unk, bos, eos = rest.pieces[:3]
    pad = ModelProto.SentencePiece(piece="<pad>", score=0.0, type=unk.CONTROL)
    first = dict(zip((BOS, PAD, EOS, UNK), (bos, pad, eos, unk), strict=True))
    del rest.pieces[:3]
    # A message is its fields one after another, so two of them are one with the pieces of both.
    head = ModelProto(pieces=[first[id] for id in sorted(first)])
    return head.SerializeToString() + rest.SerializeToString()
