"""The tokenizer: a sentencepiece unigram model behind XLM-R's numbering of ids."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece

from mlm.errors import DataError
from mlm.text.ids import BOS, EOS, EXTRA, MODEL_FILE, PAD, SHIFT, UNK

PADDED_TO = 128


class Tokenizer:
    """Text to ids and back. Made by `Tokenizer.load`."""

    bos, pad, eos, unk = BOS, PAD, EOS, UNK

    def __init__(self, model: bytes, model_path: Path) -> None:
        self.model_path = model_path
        self.hash = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.load_from_serialized_proto(model)  # refuses what holds no model
        self.size = self._processor.get_piece_size() + EXTRA  # all real ids, <mask> included
        self.mask = self.size - 1

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a folder; raises DataError where there is none in it."""
        path = Path(folder) / MODEL_FILE
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"the tokenizer {folder} has no {MODEL_FILE} that can be read "
                f"({error.strerror}); give the folder that `mlm tokenizer` wrote"
            ) from None
        try:
            tokenizer = cls(model, path)
        except RuntimeError:
            raise DataError(
                f"{path} is not a sentencepiece model; give the folder that `mlm tokenizer` wrote"
            ) from None
        processor = tokenizer._processor
        first = (processor.unk_id(), processor.bos_id(), processor.eos_id())
        if first != (0, 1, 2):
            raise DataError(
                f"{path} has <unk>, <s>, </s> at {first} and not at (0, 1, 2), where XLM-R's ids "
                f"need them; train a tokenizer with `mlm tokenizer`"
            )
        return tokenizer

    @cached_property
    def padded_size(self) -> int:
        """The rows of an embedding for these ids: `size` up to a multiple of 128."""
        return -(-self.size // PADDED_TO) * PADDED_TO

    def encode(self, lines: list[str], threads: int = 1) -> list[np.ndarray]:
        """The ids of each line, int32, without special ids; one batch call to sentencepiece."""
        return [_shifted(ids) for ids in self._processor.encode(lines, num_threads=threads)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. `<s>`, `<pad>` and `</s>` are left out; `<mask>` is shown."""
        shown = [id for id in map(int, ids) if id not in (BOS, PAD, EOS)]
        return self._processor.decode_pieces(self.pieces(shown))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id; special ones as `<s>`. Raises IndexError at an id >= size."""
        special = {BOS: "<s>", PAD: "<pad>", EOS: "</s>", UNK: "<unk>", self.mask: "<mask>"}
        return [special.get(id) or self._processor.id_to_piece(id - SHIFT) for id in map(int, ids)]


def _shifted(ids: Sequence[int]) -> np.ndarray:
    ours = np.array(ids, dtype=np.int32) + np.int32(SHIFT)
    ours[ours == SHIFT] = UNK  # sentencepiece's <unk> is 0
    return ours
