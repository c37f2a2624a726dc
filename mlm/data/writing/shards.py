"""Token shards: WebDataset tars of ids, and their index, from a corpus and a tokenizer.

A language is one job: a first pass finds what is held out, a second one tokenizes and writes. What
is written depends on text and tokenizer only, to the byte, and not on the number of workers, nor on
whether it was written in one go.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlm.data.index import SAMPLE_FIELDS, SHARD, SPLITS, Totals, write_index
from mlm.data.writing import staging, tars
from mlm.data.writing.drops import report_of
from mlm.data.writing.heldout import FirstPass, first_pass
from mlm.data.writing.journal import Added, Read
from mlm.data.writing.tars import TokenTars
from mlm.data.writing.tokenizing import Work, tokenized
from mlm.data.writing.workers import SMALL, Report, Workers
from mlm.files.folders import kept_folder
from mlm.text.corpus import languages, skipped_files
from mlm.text.sources import Text
from mlm.tokenizer.tokenizer import Tokenizer

Progress = Callable[[int, int | None], None]
SHARD_FIELD, START_FIELD = SAMPLE_FIELDS.index("shard"), SAMPLE_FIELDS.index("start")
VERSION = 2  # of what a staging folder holds; one more when an older one cannot be gone on with
REPORT = "report.json"
FEW = 5  # names that are said of files that are passed over


@dataclass(frozen=True)
class Options:
    """Which text is left out. A copy: a document with the same paragraphs as one before it in its
    language. A bad line: no UTF-8, or no JSON object with a text."""

    drop_copies: bool = False
    skip_bad_lines: bool = False


@dataclass(frozen=True)
class Written:
    """One language's part of the index: totals by split, and rows that count from 0.

    shards: (shards,) of `SHARD`; samples: (fields, samples) int64
    """

    read: Read
    added: tuple[Added, Added]
    totals: tuple[Totals, Totals]
    shards: np.ndarray
    samples: np.ndarray


def write(
    corpus: Path,
    tokenizer: Tokenizer,
    out: Path,
    workers: int | None = None,
    on_progress: Progress | None = None,
    options: Options = Options(),
    say: Callable[[str], None] = lambda sentence: None,
    complete: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes the shards of a corpus, their index and a report into the new folder `out`.

    `workers` cores, None for all of them. `on_progress(done, total)` counts characters, in the
    first pass with None for the total. `complete(folder)` may add files before the folder gets its
    name. `say` gets sentences. Raises DataError for text that cannot be used, UserError where `out`
    has something in it or cannot be written. `out` is there whole or not at all; after a kill or an
    error, whole shards stay beside it, and the same call goes on from them.
    """
    sources, over = languages(corpus), skipped_files(corpus)
    if over:
        few = ", ".join(over[:FEW]) + (f" and {len(over) - FEW} more" if len(over) > FEW else "")
        say(f"Passed over in {corpus}, as no text by their names: {few}")
    belongs_to = {
        "version": VERSION,
        "tokenizer": tokenizer.hash,
        **asdict(options),
        "sample_ids": tars.SAMPLE_IDS,
        "shard_samples": tars.SHARD_SAMPLES,
    }
    with kept_folder(out, staging.anything_finished, staging.WORK) as folder:
        stage = staging.Staging(folder, belongs_to, say)
        known = stage.match(sources)
        if staging.anything_finished(folder):
            say(f"Going on from the shards that an earlier command left in {folder}")
        try:
            parts = _parts(sources, known, tokenizer, folder, workers, on_progress, options)
            stage.check_unchanged(sources)
            _write_index(folder, tokenizer, parts)
            report = report_of({name: (part.read, part.added) for name, part in parts.items()})
            report["passed over"] = over
            (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
            complete(folder)
        except BaseException:
            if staging.anything_finished(folder):
                say(f"Whole shards stay in {folder}; the same command goes on from them")
            raise


def _parts(
    sources: dict[str, Text],
    known: dict[str, FirstPass],
    tokenizer: Tokenizer,
    folder: Path,
    workers: int | None,
    on_progress: Progress | None,
    options: Options,
) -> dict[str, Written]:
    """Writes the shards of all languages, the largest first; the first pass of some is `known`."""
    sizes = {language: _size(text) for language, text in sources.items()}
    with Workers(workers, len(sources), sum(sizes.values())) as pool:
        jobs = {
            language: (folder, language, sources[language], options)
            for language in sorted(sources, key=lambda language: -sizes[language])
        }
        new = {language: job for language, job in jobs.items() if language not in known}
        looked = None if on_progress is None else lambda done: on_progress(done, None)
        found = known | pool.each(_first_pass, new, looked)
        total = sum(each.characters for each in found.values())
        jobs = {
            language: (*jobs[language], found[language], tokenizer.model_path)
            for language in sorted(jobs, key=lambda language: -found[language].characters)
        }
        report = None if on_progress is None else lambda done: on_progress(done, total)
        written = pool.each(_write_language, jobs, report)
    return {language: written[language] for language in sources}


def _size(text: Text) -> int:
    """Bytes of a language's sources; where that is not known, enough to be worth a process."""
    return sum(source.size() or SMALL for source in text)


def _write_index(folder: Path, tokenizer: Tokenizer, written: dict[str, Written]) -> None:
    """Joins the rows of all languages, which count from 0 in each."""
    shards = tokens = 0
    for part in written.values():
        part.samples[SHARD_FIELD] += shards
        part.samples[START_FIELD] += tokens
        shards += len(part.shards)
        tokens += sum(of.tokens for of in part.totals)
    write_index(
        folder,
        tokenizer,
        {language: part.totals for language, part in written.items()},
        np.concatenate([part.shards for part in written.values()]),
        np.concatenate([part.samples for part in written.values()], axis=1),
    )


def _first_pass(
    report: Report, folder: Path, language: str, text: Text, options: Options
) -> FirstPass:
    found = first_pass(language, text, report, options.drop_copies, options.skip_bad_lines)
    staging.save(folder / staging.WORK, language, found)
    return found


def _write_language(
    report: Report,
    folder: Path,
    language: str,
    text: Text,
    options: Options,
    found: FirstPass,
    model_path: Path,
) -> Written:
    work = folder / staging.WORK
    with ExitStack() as stack:
        # Left in turn, the last first: once what is held out is finished, so is the rest.
        heldout, train = (
            stack.enter_context(
                TokenTars(folder, language, split, staging.journal(work, language, split))
            )
            for split in reversed(SPLITS)
        )
        streams = [train, heldout]
        if all(stream.done for stream in streams):
            read = staging.load_read(work, language)
            report(found.characters)
        else:
            tokenizer = Tokenizer.load(model_path.parent)
            read, digest = _add_all(report, text, found, options, tokenizer, streams)
            if found.digest and digest != found.digest:
                staging.forget(work, language)
                raise staging.changed(language, text)
            staging.save_read(work, language, read)
    totals = (streams[0].totals, streams[1].totals)
    shards = [
        (*rest, np.frombuffer(sha256, np.uint8))
        for each in streams
        for *rest, sha256 in each.shards
    ]
    rows = [row for stream in streams for row in stream.samples]
    samples = np.array(rows, np.int64).reshape(-1, len(SAMPLE_FIELDS)).T
    samples[SHARD_FIELD, totals[0].samples :] += totals[0].shards
    samples[START_FIELD, totals[0].samples :] += totals[0].tokens
    added = (streams[0].added, streams[1].added)
    return Written(read, added, totals, np.array(shards, SHARD), samples)


def _add_all(
    report: Report,
    text: Text,
    found: FirstPass,
    options: Options,
    tokenizer: Tokenizer,
    streams: list[TokenTars],
) -> tuple[Read, int]:
    """Tokenizes what the streams of the splits do not have yet, and adds it; what was read, and the
    digest of all of it."""
    starts = [stream.start for stream in streams]
    work, left = Work(text, found, starts, options.skip_bad_lines), found.characters
    with closing(tokenized(work, tokenizer, report.threads)) as batches:
        for characters, ids in batches:
            for stream, each in zip(streams, ids, strict=True):
                if each.added != Added():
                    stream.add(each)
            report(min(characters, left))
            left -= min(characters, left)
    report(left)  # line ends and the like, which the first pass counted
    return work.read, work.digest.intdigest()
