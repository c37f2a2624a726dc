"""Training of a tokenizer on text that is sampled by temperature.

A language with n of the corpus's bytes gets a share of the sample in proportion to n^alpha (XLM,
section 3.1; alpha 0.3 in XLM-R), so that the small ones count for more than their size. Of a
language larger than its share, whole documents are chosen by a key of their text.
"""

import heapq
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event, Thread

import sentencepiece

from mlm.errors import DataError
from mlm.files.folders import new_folder
from mlm.text.corpus import languages
from mlm.text.documents import documents
from mlm.text.hashing import text_hash
from mlm.text.lines import Skipped
from mlm.text.sources import USUAL_FORM, Sources, TextForm
from mlm.tokenizer.ids import EXTRA, FIRST_PIECE, MODEL_FILE
from mlm.tokenizer.model_proto import ModelProto

THREADS = 16  # fixed: sums over threads are rounded, so that the model depends on their number
MAX_LINE = 1024  # characters, at most 4096 bytes: sentencepiece drops lines of more than 4192
LONGEST_WORD = 64  # characters that may be left out so that a word stays whole
LARGE = 1 << 30  # bytes; for more, sentencepiece needs 64-bit indices
SMALLEST = FIRST_PIECE + 2  # four special ids, a piece and <mask>
SECONDS_BETWEEN_SIGNALS = 0.1
RECORD = "training.json"  # how a tokenizer was made, beside it

Progress = Callable[[int, int], None]


def train(
    corpus: Path,
    out: Path,
    vocab_size: int,
    alpha: float = 0.3,
    sample_bytes: int = 1_000_000_000,
    character_coverage: float = 0.9995,
    seed: int = 1,
    on_progress: Progress | None = None,
    on_fit: Callable[[int], None] = lambda size: None,
    skip_bad_lines: bool = False,
    form: TextForm = USUAL_FORM,
) -> None:
    """Trains a unigram model of `vocab_size` ids, all special ones included, into the folder `out`.

    The sample holds at most `sample_bytes` of text, and never more than the corpus does, since
    alpha would have no effect then. The same arguments give the same bytes on any number of cores.
    `on_progress(done, total)` counts bytes of the corpus's files, each of which is read twice;
    `on_fit(bytes of the sample)` is called after that, since sentencepiece tells no progress.
    Raises DataError for text that cannot be read (except bad lines that are skipped) or is too
    short for so many ids, UserError for a folder that cannot be written; `out` is whole or absent.
    """
    files = languages(corpus, form)
    if vocab_size < SMALLEST:
        raise DataError(
            f"vocab_size={vocab_size} leaves no id for a piece besides the special ones; "
            f"give {SMALLEST} or more, usually some thousands"
        )
    progress = _Progress(files, on_progress)
    sizes = {
        language: _text_bytes(_documents(text, skip_bad_lines))
        for language, text in progress.each(files)
    }
    quotas = shares(sizes, alpha, min(sample_bytes, sum(sizes.values())))
    taken = dict.fromkeys(files, 0)

    def lines() -> Iterator[str]:
        for language, text in progress.each(files):
            for paragraph in _sample(_documents(text, skip_bad_lines), quotas[language], seed):
                taken[language] += len(paragraph.encode())
                yield from split_paragraph(paragraph)
        on_fit(sum(taken.values()))

    with new_folder(out) as folder:
        model = _unigram(lines(), vocab_size, character_coverage, sample_bytes > LARGE)
        (folder / MODEL_FILE).write_bytes(model)
        made = {
            "vocab_size": vocab_size,
            "alpha": alpha,
            "sample_bytes": sample_bytes,
            "character_coverage": character_coverage,
            "seed": seed,
            "normalization": "nmt_nfkc",
            "sentencepiece": sentencepiece.__version__,
            "languages": {name: {"bytes": sizes[name], "sampled": taken[name]} for name in files},
        }
        (folder / RECORD).write_text(json.dumps(made, indent=1) + "\n")


def shares(sizes: dict[str, int], alpha: float, sample_bytes: int) -> dict[str, int]:
    """The bytes that each language has in the sample, in proportion to size^alpha."""
    weights = {language: size**alpha if size else 0.0 for language, size in sizes.items()}
    total = sum(weights.values()) or 1.0
    return {name: int(sample_bytes * weight / total) for name, weight in weights.items()}


def split_paragraph(paragraph: str) -> Iterator[str]:
    """A paragraph in parts of at most `MAX_LINE` characters, cut between words where possible."""
    while len(paragraph) > MAX_LINE:
        space = paragraph.rfind(" ", 1, MAX_LINE + 1)
        end = space if space > 0 else MAX_LINE
        yield paragraph[:end]
        paragraph = paragraph[end:].lstrip()
    if paragraph:
        yield paragraph


def _documents(text: Sources, skip_bad_lines: bool) -> Iterator[list[str]]:
    return documents(text, Skipped(skip_bad_lines))


def _text_bytes(documents: Iterable[list[str]]) -> int:
    return sum(len(paragraph.encode()) for document in documents for paragraph in document)


def _sample(documents: Iterable[list[str]], quota: int, seed: int) -> Iterator[str]:
    """Paragraphs of the documents with the smallest hashes that fill `quota` bytes, or of all; of
    the last of these documents, only as much of its beginning as the others leave."""
    kept: list[tuple[int, int, int, list[str]]] = []  # the largest hash first
    total = 0
    for number, document in enumerate(documents):
        size = sum(len(paragraph.encode()) for paragraph in document)
        heapq.heappush(kept, (-text_hash(document, f"tokenizer {seed}"), number, size, document))
        total += size
        while total - kept[0][2] >= quota and len(kept) > 1:
            total -= heapq.heappop(kept)[2]
    largest = kept[0][1] if kept else None
    for _, number, size, document in sorted(kept, key=lambda row: row[1]):
        above = total - quota if number == largest else 0
        yield from _beginning(document, size - above) if above > 0 else document


def _beginning(document: list[str], size: int) -> Iterator[str]:
    """The first `size` bytes of a document, less what would be part of a word or a character."""
    for paragraph in document:
        raw = paragraph.encode()
        if len(raw) > size:
            part = raw[:size].decode(errors="ignore")
            space = part.rfind(" ", max(1, len(part) - LONGEST_WORD))
            yield part[:space] if space > 0 else part
            return
        yield paragraph
        size -= len(raw)


def _unigram(lines: Iterator[str], vocab_size: int, coverage: float, large: bool) -> bytes:
    model, ended = io.BytesIO(), Event()
    raised: list[Exception] = []
    refused: list[RuntimeError] = []

    def guarded() -> Iterator[str]:
        # Sentencepiece turns an exception of the iterator into text; this keeps the exception.
        try:
            for line in lines:
                yield line
                if ended.is_set():
                    return
        except Exception as error:
            raised.append(error)

    def fit() -> None:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=guarded(),
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size - EXTRA,
                character_coverage=coverage,
                normalization_rule_name="nmt_nfkc",
                num_threads=THREADS,
                train_extremely_large_corpus=large,
                minloglevel=2,
            )
        except RuntimeError as error:
            refused.append(error)

    # Aside, so that Ctrl-C is seen here at once: sentencepiece returns to Python only at its end.
    aside = Thread(target=fit, name="sentencepiece", daemon=True)
    aside.start()
    try:
        while aside.is_alive():
            aside.join(SECONDS_BETWEEN_SIGNALS)
    finally:
        ended.set()
    if raised:
        raise raised[0]
    if refused:
        raise _training_error(str(refused[0]), vocab_size, coverage)
    return _with_exact_scores(model.getvalue())


def _with_exact_scores(model: bytes) -> bytes:
    """The model with the scores of its pieces rounded to 1/256.

    Sums of such scores are exact in fp32 up to 65,536. Sentencepiece adds up in fp32 and other
    readers of the model in fp64; with scores as trained, rounding decides a tie in some 100,000
    lines, and the two give other ids (measured: 1 line in 258,088; rounded, none).
    """
    proto = ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * 256) / 256
    return proto.SerializeToString()


def _training_error(message: str, vocab_size: int, coverage: float) -> DataError:
    """The error for a message of sentencepiece, in XLM-R's count of ids."""
    if found := re.search(r"set it to a value <= (\d+)", message):
        most = int(found[1]) + EXTRA
        return DataError(
            f"vocab_size={vocab_size} is more than this text has pieces for; choose {most} or "
            f"fewer, or add text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        least = int(found[1]) + EXTRA
        lower = ", or a smaller character_coverage, from 0.98 on" if coverage > 0.98 else ""
        return DataError(
            f"vocab_size={vocab_size} is too small for the characters of this text; choose "
            f"{least} or more{lower}"
        )
    if "sentences_.empty()" in message:
        return DataError("the corpus holds no text to train on; put text into its files")
    return DataError(
        f"sentencepiece cannot train {vocab_size} ids on this text: {message.strip()}; change "
        f"vocab_size or the text"
    )


class _Progress:
    """Counts bytes of files, each read twice."""

    def __init__(self, files: dict[str, Sources], report: Progress | None) -> None:
        self._report = report
        self._sizes = {
            language: sum(one.size() for one in text) for language, text in files.items()
        }
        self._total = 2 * sum(self._sizes.values())
        self._done = 0

    def each(self, files: dict[str, Sources]) -> Iterator[tuple[str, Sources]]:
        for language, text in files.items():
            yield language, text
            self._done += self._sizes[language]
            if self._report is not None:
                self._report(self._done, self._total)
