"""The tokenizer: a sentencepiece unigram model behind XLM-R's numbering of ids."""

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mlm.errors import DataError
from mlm.tokenizer.ids import BOS, EOS, JSON_FILE, MODEL_FILE, PAD, UNK
from mlm.tokenizer.tokenizer_json import sentencepiece_model

PADDED_TO = 128
CONTROLS = 3  # pieces of a sentencepiece model that are no text
# Of a call inside sentencepiece: no pool of threads, no sampling with its two settings, no <s>, no
# </s>, not turned around.
PLAIN = (None, False, -1, 0.1, False, False, False)
FEW = 16  # lines that are done sooner one by one than a batch call has its thread running


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
        `tokenizer.json` was made of; raises DataError where it has neither."""
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
            if _begins_like_xlmr(model):
                return cls(model, path)
            other = sentencepiece.SentencePieceProcessor()
            other.load_from_serialized_proto(model)
        except (DecodeError, RuntimeError, ValueError):
            raise DataError(
                f"{path} is not a sentencepiece model; give the folder that `mlm tokenizer` wrote"
            ) from None
        first = (other.unk_id(), other.bos_id(), other.eos_id())
        raise DataError(
            f"{path} has <unk>, <s>, </s> at {first} and not at (0, 1, 2), where XLM-R's ids need "
            f"them; train a tokenizer with `mlm tokenizer`"
        )

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has one of the files that `load` reads."""
        return any((folder / name).is_file() for name in (MODEL_FILE, JSON_FILE))

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether both give the same ids, also where one was made of a `tokenizer.json`."""
        return self.hash == other.hash or _rules(self.model) == _rules(other.model)

    def check_beside(self, folder: Path) -> None:
        """Raises DataError where a folder has a `tokenizer.json` that gives other ids. Read as a
        whole, which takes seconds for a large vocabulary."""
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
        """The ids that are no pieces of text, by what they are written as."""
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
        return self._encoded(lines, threads, out_type="numpy")

    def buffers(self, lines: list[str], threads: int = 1) -> list[Any]:
        """As `encode`, but each line's ids are an object whose buffer holds int32.

        To make an array of each takes sentencepiece a sixth of the time, on lines as they are.
        """
        if self._buffer_call is None or len(lines) < FEW:
            return self.encode(lines, threads)
        return self._buffer_call(lines, threads, *PLAIN)

    @cached_property
    def _buffer_call(self) -> Callable[..., list[Any]] | None:
        """What sentencepiece's own `encode` calls for arrays; None where it is not as known."""
        call = getattr(self._processor._processor, "_EncodeAsBufferBatch", None)
        lines = ["a b", "ab, a"]
        try:
            found = call and [np.frombuffer(one, np.int32) for one in call(lines, 1, *PLAIN)]
        except TypeError:
            return None
        same = found and all(map(np.array_equal, found, self.encode(lines)))
        return call if same else None

    def closed(self, lines: list[str], threads: int, arrays: bool) -> list[Any]:
        """As `encode`, with `<s>` before and `</s>` behind each line; as arrays or as lists."""
        kind = "numpy" if arrays else int
        return self._encoded(lines, threads, out_type=kind, add_bos=True, add_eos=True)

    def _encoded(self, lines: list[str], threads: int, **options: Any) -> list[Any]:
        if len(lines) < FEW:
            return [self._processor.encode(line, **options) for line in lines]
        return self._processor.encode(lines, num_threads=threads, **options)

    def surfaces(self, line: str) -> list[str]:
        """What each id of a line stands for; other than its piece where that is `<unk>`."""
        return self._processor.encode(line, out_type=str)

    def normalised(self, line: str) -> tuple[str, list[int]]:
        """What sentencepiece makes of a line before it cuts it, and the place of each character.

        A place counts the characters of `line` before those that the character was made of; one
        more says where the last of these ends.
        """
        return self._processor.normalize(line, with_offsets=True)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. `<s>`, `<pad>` and `</s>` are left out; `<mask>` is shown."""
        shown = [id for id in map(int, ids) if id not in (BOS, PAD, EOS)]
        return self._processor.decode_pieces(self.pieces(shown))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id; special ones as `<s>`. Raises IndexError at an id >= size."""
        mask, name = self.mask, self._processor.id_to_piece
        return ["<mask>" if id == mask else name(id) for id in map(int, ids)]


def _rules(model: bytes) -> tuple[Any, ...]:
    """All that the ids are made by: pieces with their scores, and how text is normalised."""
    made = ModelProto.FromString(model)
    spec = made.normalizer_spec
    blanks = spec.add_dummy_prefix, spec.remove_extra_whitespaces, spec.escape_whitespaces
    pieces = [(piece.piece, piece.score) for piece in made.pieces[CONTROLS:]]
    return pieces, spec.precompiled_charsmap, blanks


def _begins_like_xlmr(model: bytes) -> bool:
    first = ModelProto.FromString(model).pieces[:3]
    kinds = [piece.type for piece in first]
    if kinds != [ModelProto.SentencePiece.UNKNOWN, *2 * [ModelProto.SentencePiece.CONTROL]]:
        return False
    return [piece.piece for piece in first[1:]] == ["<s>", "</s>"]


def _numbered(model: bytes) -> bytes:
    """The model with its pieces moved so that sentencepiece itself gives XLM-R's ids.

    All but `<mask>`, which it would take for a piece of text.
    """
    rest = ModelProto.FromString(model)
    unk, bos, eos = rest.pieces[:3]
    pad = ModelProto.SentencePiece(piece="<pad>", score=0.0, type=unk.CONTROL)
    first = dict(zip((BOS, PAD, EOS, UNK), (bos, pad, eos, unk), strict=True))
    del rest.pieces[:3]
    # A message is its fields one behind another, so two of them are one with the pieces of both.
    head = ModelProto(pieces=[first[id] for id in sorted(first)])
    return head.SerializeToString() + rest.SerializeToString()
