"""How often a run has seen each sample, block and document: arithmetic over its order."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mlm.data.order.order import SampleOrder
from mlm.data.reading.reader import TokenReader
from mlm.errors import BadShard
from mlm.tokenizer.ids import EOS


@dataclass(frozen=True)
class Document:
    """One of a language's training documents, in the order of its stream.

    start, tokens: where in the stream it lies, its `</s>` included
    least, most: how often its tokens were seen; they differ where a run ended, or a block was left
        out, inside it
    """

    start: int
    tokens: int
    least: int
    most: int


class Exposure:
    """What the first `steps` steps of a run have seen.

    left_out: steps, from 0, whose batches are not trained on; bad_shards: rows of shards whose
    samples are not trained on, and the steps from which on
    """

    def __init__(
        self,
        order: SampleOrder,
        reader: TokenReader,
        batch: int,
        steps: int,
        left_out: Collection[int] = (),
        bad_shards: Mapping[int, int] | None = None,
    ) -> None:
        self.order, self.reader, self.batch, self.steps = order, reader, batch, steps
        self._left_out = sorted(step for step in left_out if step < steps)
        self._bad = {row: step for row, step in (bad_shards or {}).items() if step < steps}
        self._drawn = [
            order.samples(np.arange(step * batch, (step + 1) * batch)) for step in self._left_out
        ]

    def samples(self) -> np.ndarray:
        """Samples of each language, (languages,) int64; the cost does not grow with the run."""
        counts = self.order.samples_per_language(self.steps * self.batch)
        for languages, _ in self._drawn:
            counts = counts - np.bincount(languages, minlength=len(counts))
        for language in {self.reader.index.split_of(row)[0] for row in self._bad}:
            counts[language] = self.blocks(language).sum()
        return counts

    def by_language(self) -> dict[str, dict[str, float]]:
        """Tokens of text, without `<s>`, and epochs of each language, by its name."""
        names, counts = self.order.languages, self.samples()
        tokens, epochs = counts * (self.order.seq_len - 1), counts / self.order.blocks
        return {
            "tokens_by_language": dict(zip(names, tokens.tolist(), strict=True)),
            "epochs_by_language": dict(zip(names, epochs.tolist(), strict=True)),
        }

    def blocks(self, language: int) -> np.ndarray:
        """How often each block of a language was seen, (blocks,) int64."""
        counts = self._before(language, self.steps)
        for languages, blocks in self._drawn:
            np.subtract.at(counts, blocks[languages == language], 1)
        for (first, last), since in self._bad_blocks(language).items():
            kept = self._before(language, since)[first:last]
            for step, (languages, blocks) in zip(self._left_out, self._drawn, strict=True):
                if step < since:
                    here = blocks[(languages == language) & (blocks >= first) & (blocks < last)]
                    np.subtract.at(kept, here - first, 1)
            counts[first:last] = np.minimum(counts[first:last], kept)
        return counts

    def documents(self, language: int) -> Iterator[Document]:
        """A language's documents, whose tokens are read to find them.

        Of what cannot be read there are none, and of a document that goes on in it the rest.
        """
        size = self.order.seq_len - 1
        # What is behind the last whole block is in no sample.
        counts = np.append(self.blocks(language), 0)
        for start, end in self._spans(language):
            first, last = start // size, (end - 1) // size
            seen = counts[min(first, len(counts) - 1) : last + 1]
            yield Document(start, end - start, int(seen.min()), int(seen.max()))

    def _before(self, language: int, steps: int) -> np.ndarray:
        """`blocks` of the first `steps`, nothing left out."""
        total = int(self.order.blocks[language])
        drawn = int(self.order.samples_per_language(steps * self.batch)[language])
        epochs, rest = divmod(drawn, total)
        counts = np.full(total, epochs, np.int64)
        counts[self.order.drawn_blocks(language, epochs * total, rest)] += 1
        return counts

    def _bad_blocks(self, language: int) -> dict[tuple[int, int], int]:
        """The blocks, from the first to the one behind the last, that bad shards are part of, and
        the steps from which on they are left out."""
        index, size = self.reader.index, self.order.seq_len - 1
        begin = int(index.first_tokens("train")[language])
        shards = index.samples["shard"]
        found = {}
        for row, since in self._bad.items():
            if index.split_of(row) != (language, "train"):
                continue
            samples = slice(*shards.searchsorted([row, row + 1]).tolist())
            first = int(index.samples["start"][samples][0]) - begin
            last = first + int(index.samples["tokens"][samples].sum())
            found[first // size, min(-(-last // size), int(self.order.blocks[language]))] = since
        return found

    def _spans(self, language: int) -> Iterator[tuple[int, int]]:
        """Where the documents of a language's stream begin and end."""
        index, start, place = self.reader.index, 0, 0
        for tokens in index.samples["tokens"][index.sample_rows("train", language)].tolist():
            try:
                ids = self.reader.read("train", language, place, tokens)
            except BadShard:
                if place > start:
                    yield start, place
                start = place = place + tokens
                continue
            for end in (np.flatnonzero(ids == EOS) + place + 1).tolist():
                yield start, end
                start = end
            place += tokens
        if place > start:  # a document's end could not be read
            yield start, place
