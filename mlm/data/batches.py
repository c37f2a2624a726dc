"""Micro-batches of fixed shape: for training by sample number, for evaluation a fixed list."""

import numpy as np
import torch

from mlm.batch import MicroBatch
from mlm.data.ledger import batch_digest
from mlm.data.masking import Masking, maskable, masked_positions
from mlm.data.order import SampleOrder
from mlm.data.reader import TokenReader
from mlm.errors import DataError
from mlm.text.ids import BOS, PAD
from parallel.keys import key


class TrainingBatches:
    """The micro-batches of every step, each a function of its number alone."""

    def __init__(
        self,
        reader: TokenReader,
        order: SampleOrder,
        masking: Masking,
        seed: int,
        micro_batch_size: int,
        global_batch_size: int,
    ) -> None:
        """Batch sizes count sequences; the global one is a multiple of the other."""
        assert global_batch_size % micro_batch_size == 0, (global_batch_size, micro_batch_size)
        self.order = order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.reader, self.masking, self._seed = reader, masking, seed

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, over all data ranks."""
        return self.global_batch_size // self.micro_batch_size

    def micro_batch(self, step: int, k: int) -> MicroBatch:
        """Micro-batch `k` of a step, both from 0; the same in every layout."""
        assert 0 <= k < self.micro_batches, k
        first = step * self.global_batch_size + k * self.micro_batch_size
        numbers = np.arange(first, first + self.micro_batch_size)
        languages, blocks = self.order.samples(numbers)
        seq_len = self.order.seq_len
        ids = np.full((len(numbers), seq_len), BOS, np.int64)
        self.reader.gather("train", languages, blocks * (seq_len - 1), ids[:, 1:])
        lengths = np.full(len(numbers), seq_len, np.int64)
        keys = [key(self._seed, "mask", number) for number in numbers.tolist()]
        masked = self.masking(ids, lengths, np.array(keys))
        return _micro_batch(ids, lengths, languages, masked, batch_digest(numbers, *masked))


class HeldOutBatches:
    """The held-out blocks that every evaluation scores, with the same masks each time.

    Of each language its first `blocks_per_language` blocks, or all where that is 0. The last block
    of a language may be short, and is padded; with fewer than two tokens that can be masked it is
    left out. Masks are keyed by language and block, not by the run's seed, so that runs compare.
    """

    def __init__(
        self,
        reader: TokenReader,
        masking: Masking,
        seq_len: int,
        micro_batch_size: int,
        blocks_per_language: int,
    ) -> None:
        """Raises DataError where nothing of any language was held out."""
        self.reader, self.masking = reader, masking
        self.seq_len, self.micro_batch_size = seq_len, micro_batch_size
        self.languages, self.blocks, self.tokens = self._rows(blocks_per_language)
        if not len(self.languages):
            raise DataError(
                f"no language of {reader.index.folder} has held-out text to evaluate on; write the "
                f"shards again from more text"
            )

    def __len__(self) -> int:
        """Micro-batches; the last is filled up with rows that have no targets."""
        return -(-len(self.languages) // self.micro_batch_size)

    def micro_batch(self, k: int) -> MicroBatch:
        """Micro-batch `k`; from `len` on all rows are without targets, to even out ranks."""
        first = k * self.micro_batch_size
        rows = range(first, min(first + self.micro_batch_size, len(self.languages)))
        shape = self.micro_batch_size, masked_positions(self.seq_len, self.masking.ratio)
        ids = np.full((self.micro_batch_size, self.seq_len), PAD, np.int64)
        ids[:, 0] = BOS
        lengths, languages = np.ones(shape[0], np.int64), np.zeros(shape[0], np.int64)
        keys = np.zeros(shape[0], np.uint64)
        for at, row in enumerate(rows):
            languages[at], lengths[at] = self.languages[row], self.tokens[row] + 1
            ids[at, 1 : lengths[at]] = self.block(row)
            name = self.reader.index.languages[languages[at]]
            keys[at] = key("evaluation", name, int(self.blocks[row]))
        return _micro_batch(ids, lengths, languages, self.masking(ids, lengths, keys))

    def block(self, row: int) -> np.ndarray:
        """The token ids of a row without its `<s>`, (tokens,) int32."""
        start = int(self.blocks[row]) * (self.seq_len - 1)
        return self.reader.read("heldout", int(self.languages[row]), start, int(self.tokens[row]))

    def _rows(self, blocks_per_language: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Language, block and tokens of every row, each (rows,) int64."""
        rows, size = [], self.seq_len - 1
        for language, tokens in enumerate(self.reader.index.heldout_tokens):
            whole, rest = divmod(tokens, size)
            found = [(language, block, size) for block in range(whole)]
            if rest and self._can_mask(language, whole * size, rest):
                found.append((language, whole, rest))
            rows += found[:blocks_per_language] if blocks_per_language else found
        columns = np.array(rows, np.int64).reshape(-1, 3).T
        return columns[0], columns[1], columns[2]

    def _can_mask(self, language: int, start: int, count: int) -> bool:
        ids = self.reader.read("heldout", language, start, count)
        return int(maskable(ids, self.masking.mask_id).sum()) >= 2


def _micro_batch(
    ids: np.ndarray,
    lengths: np.ndarray,
    languages: np.ndarray,
    masked: tuple[np.ndarray, np.ndarray, np.ndarray],
    digest: int = 0,
) -> MicroBatch:
    input_ids, positions, targets = (torch.from_numpy(array) for array in masked)
    return MicroBatch(
        input_ids=input_ids,
        lengths=torch.from_numpy(lengths),
        positions=positions,
        targets=targets,
        languages=torch.from_numpy(languages.astype(np.int64)),
        digest=digest,
    )
