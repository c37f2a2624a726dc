"""The order of samples: a pure function of a sample's number, without state.

A run consists of rounds. In each, a language has a whole number of samples (`mix.py`), shuffled by
a key of the round, so that the number of samples of a language before any sample can be computed
directly. The i-th sample of a language is the i-th block of its concatenated epochs. Block k is
tokens [(seq_len - 1) k, (seq_len - 1)(k + 1)) of the language's stream. An epoch permutes chunks of
512 blocks, and the blocks inside each window of chunks: reads stay close together while
neighbouring blocks are drawn far apart. Neither time nor memory grows with the sample number or
with the data.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mlm.config.data import SHORTEST
from mlm.data.draw import Shuffle, bits, chained, permutation, permutations
from mlm.data.order.mix import ROUND, Mix
from mlm.errors import DataError
from parallel.keys import key

CHUNK = 512  # blocks, about 1 MiB of ids at 512 tokens
ROUNDS_KEPT = 4
FEW = 2048  # samples that take less time one by one than with all of their round


class SampleOrder:
    """The language and the block of every sample number."""

    def __init__(
        self,
        train_tokens: Sequence[int],
        language_names: Sequence[str],
        seq_len: int,
        mix: Mix,
        seed: int,
        shuffle_window: int = 16,
    ) -> None:
        """`shuffle_window` counts chunks. Raises DataError where a language has no whole block."""
        _check_blocks(train_tokens, language_names, seq_len)
        self.seq_len = seq_len
        self.languages = list(language_names)
        self.blocks = np.asarray(train_tokens, np.int64) // (seq_len - 1)
        self.mix = mix
        self._seed = seed
        self._window = shuffle_window
        self._keys = [key(seed, "blocks", name) for name in self.languages]
        # All of a round is computed at once; one or two windows of a language are in use at a time.
        self._drawn = lru_cache(ROUNDS_KEPT)(self._draw_round)
        self._round = lru_cache(ROUNDS_KEPT)(self._blocks_of_round)
        self._last_round: int | None = None  # of the last call of `samples`
        self._chunks = lru_cache(2 * len(self.languages))(self._shuffled_chunks)
        self._blocks = lru_cache(2 * len(self.languages))(self._shuffled_blocks)

    def samples(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The languages (n,) int32 and blocks (n,) int64 of sample numbers (n,), from 0 up.

        The cost does not depend on the numbers.
        """
        rounds, places = np.divmod(np.asarray(numbers, np.int64), ROUND)
        if len(rounds) and (rounds == rounds[0]).all():
            return self._of_round(int(rounds[0]), places)
        languages, blocks = np.empty(len(rounds), np.int32), np.empty(len(rounds), np.int64)
        for round in np.unique(rounds).tolist():
            here = rounds == round
            languages[here], blocks[here] = self._of_round(round, places[here])
        return languages, blocks

    def drawn_blocks(self, language: int, first: int, count: int) -> np.ndarray:
        """The blocks of draws `first` to `first + count` of a language, counted from 0 over all
        epochs; (count,) int64."""
        total = int(self.blocks[language])
        if total <= min(count, self._window * CHUNK):
            return self._many_epochs(language, first, count)
        out, done = np.empty(count, np.int64), 0
        while done < count:
            epoch, place = divmod(first + done, total)
            window, inside = self._window_at(language, epoch, place)
            blocks = self._blocks(language, epoch, window)[inside : inside + count - done]
            out[done : done + len(blocks)] = blocks
            done += len(blocks)
        return out

    def samples_per_language(self, samples_done: int) -> np.ndarray:
        """The samples of each language among the first `samples_done`, (languages,) int64."""
        round, rest = divmod(samples_done, ROUND)
        counts = self.mix.before(round)
        if rest:
            drawn, _, _ = self._drawn(round)
            counts = counts + np.bincount(drawn[:rest], minlength=len(self.languages))
        return counts

    def tokens_per_language(self, samples_done: int) -> np.ndarray:
        """The tokens of text in these samples, without `<s>`, (languages,) int64."""
        return self.samples_per_language(samples_done) * (self.seq_len - 1)

    def _of_round(self, round: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Languages and blocks at places in a round."""
        drawn, draws, _ = self._drawn(round)
        last, self._last_round = self._last_round, round
        if last == round or len(places) > FEW:
            return drawn[places], self._round(round)[places]
        # The first call for a round may be the only one, as in an audit: not worth all of a round.
        pairs = zip(drawn[places].tolist(), draws[places].tolist(), strict=True)
        blocks = [int(self.drawn_blocks(language, draw, 1)[0]) for language, draw in pairs]
        return drawn[places], np.array(blocks, np.int64)

    def _draw_round(self, round: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each sample of a round, its language and the number of its draw, from 0 over the whole
        run; and the places of the samples, one language after another."""
        quotas, before = self.mix.quotas(round), self.mix.before(round)
        size = int(quotas.sum())  # ROUND, or less in the last round of a mix that ends
        order = permutation(size, key(self._seed, "round", round))
        drawn = np.repeat(np.arange(len(self.languages), dtype=np.int32), quotas)[order]
        draws = np.empty(size, np.int64)
        firsts = np.cumsum(quotas) - quotas
        places = _places_by(drawn)
        draws[places] = np.arange(size) + np.repeat(before - firsts, quotas)
        return drawn, draws, places

    def _blocks_of_round(self, round: int) -> np.ndarray:
        """The block of each sample of a round."""
        quotas, before = self.mix.quotas(round), self.mix.before(round)
        _, _, places = self._drawn(round)
        blocks = np.empty(len(places), np.int64)
        blocks[places] = np.concatenate(
            [
                self.drawn_blocks(language, first, count)
                for language, (first, count) in enumerate(
                    zip(before.tolist(), quotas.tolist(), strict=True)
                )
            ]
        )
        return blocks

    def _many_epochs(self, language: int, first: int, count: int) -> np.ndarray:
        """`drawn_blocks` of a language that fits in one window, and may have thousands of epochs in
        a round: all of them at once."""
        total = int(self.blocks[language])
        begin, place = divmod(first, total)
        epochs = np.arange(begin, begin + -(-(place + count) // total), dtype=np.uint64)
        keys = bits(bits(np.uint64(self._keys[language]), epochs), np.uint64(0))
        return permutations(total, keys).ravel()[place : place + count]

    def _window_at(self, language: int, epoch: int, place: int) -> tuple[int, int]:
        """The window of a place in an epoch, and the place inside the window.

        All windows have `window` chunks of 512 blocks, except for the last one, and for the one
        with the language's last, shorter chunk: the windows after it begin earlier.
        """
        size = self._window * CHUNK
        missing = -int(self.blocks[language]) % CHUNK
        _, short = self._chunks(language, epoch)
        if place >= (short // self._window + 1) * size - missing:
            place += missing
        return divmod(place, size)

    def _shuffled_chunks(self, language: int, epoch: int) -> tuple[Shuffle, int]:
        """An epoch's order of a language's chunks, and the place of the last, shorter chunk."""
        count = -(-int(self.blocks[language]) // CHUNK)
        chunks = Shuffle(count, key(self._seed, "chunks", self.languages[language], epoch))
        return chunks, int(chunks.places(np.array([count - 1]))[0])

    def _shuffled_blocks(self, language: int, epoch: int, window: int) -> np.ndarray:
        """The blocks of one window of an epoch in the order in which they are drawn."""
        order, _ = self._chunks(language, epoch)
        first = window * self._window
        chunks = np.sort(order(np.arange(first, min(first + self._window, order.count))))
        blocks = (chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
        blocks = blocks[blocks < self.blocks[language]]
        window_key = chained(chained(self._keys[language], epoch), window)
        return blocks[permutation(len(blocks), window_key)]


def _places_by(drawn: np.ndarray) -> np.ndarray:
    """The places in a round at which each language was drawn, one language after another."""
    return drawn.astype(np.uint16).argsort(kind="stable")  # a radix sort, in numpy


def _check_blocks(tokens: Sequence[int], names: Sequence[str], seq_len: int) -> None:
    fewest, name = min(zip(tokens, names, strict=True))
    if fewest < seq_len - 1:
        shorter = f"choose data.seq_len={fewest + 1} or less, " if fewest + 1 >= SHORTEST else ""
        raise DataError(
            f"the language {name} has {fewest} training tokens, and a block of data.seq_len="
            f"{seq_len} takes {seq_len - 1}; {shorter}add text to this language, or remove it"
        )
