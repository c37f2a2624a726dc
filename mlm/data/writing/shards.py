"""Token shards: WebDataset tars of ids, and their index, from a corpus and a tokenizer.

A language is a job of two passes. The first finds what may be held out, which is then chosen for
all languages together; the second tokenizes and writes. The bytes depend on text, tokenizer and
options alone: any number of workers and restarts writes the same.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlm.data.index import SAMPLE_FIELDS, SHARD, SPLITS, Totals, write_index
from mlm.data.writing import staging, tars
from mlm.data.writing.drops import report_of, skipped_members
from mlm.data.writing.first_pass import FirstPass, first_pass
from mlm.data.writing.heldout import HeldOutRule, choose
from mlm.data.writing.journal import ReadCounts, SplitCounts
from mlm.data.writing.tars import TokenTars
from mlm.data.writing.tokenizing import TextBatches, tokenized
from mlm.data.writing.workers import SMALL, JobProgress, Workers
from mlm.files.folders import kept_folder
from mlm.text.corpus import languages, name_skipped
from mlm.text.sources import USUAL_FORM, Sources, TextForm
from mlm.tokenizer.tokenizer import Tokenizer

OnProgress = Callable[[int, int | None], None]
SHARD_FIELD, START_FIELD = SAMPLE_FIELDS.index("shard"), SAMPLE_FIELDS.index("start")
VERSION = 3  # of a staging folder's content; increased when older content cannot be resumed from
REPORT = "report.json"


@dataclass(frozen=True)
class Options:
    """How text is kept, and which is dropped. A copy is a document with the paragraphs of an
    earlier one in its language. A bad line is not UTF-8, or not a JSON object with a text.

    heldout: the part of each language's text that is not trained on; 1: all of it
    """

    drop_copies: bool = False
    skip_bad_lines: bool = False
    form: TextForm = USUAL_FORM
    heldout: float = 0.01


@dataclass(frozen=True)
class LanguageShards:
    """One language's rows of the index, with shards and tokens counted from 0 in the language.

    added, totals: of each split; shards: (shards,) of `SHARD`; samples: (fields, samples) int64
    """

    read: ReadCounts
    added: tuple[SplitCounts, SplitCounts]
    totals: tuple[Totals, Totals]
    shards: np.ndarray
    samples: np.ndarray


def write(
    corpus: Path,
    tokenizer: Tokenizer,
    out: Path,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
    options: Options = Options(),
    say: Callable[[str], None] = lambda sentence: None,
    complete: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes the shards of a corpus, their index and a report into the new folder `out`.

    workers: cores to use, None for all of them
    on_progress: called with the characters done and their total, which the first pass does not know
    say: called with sentences for the user
    complete: called with the folder before it gets its name, to add files

    Raises DataError for text that cannot be used, and UserError where `out` is not empty or cannot
    be written. `out` exists whole or not at all; after a kill or an error, finished shards stay
    beside it, and the same call resumes from them.
    """
    sources, skipped = languages(corpus, options.form), name_skipped(corpus, say)
    made_with = {
        "version": VERSION,
        "tokenizer": tokenizer.hash,
        **asdict(options),
        "sample_ids": tars.SAMPLE_IDS,
        "shard_samples": tars.SHARD_SAMPLES,
    }
    with kept_folder(out, staging.has_finished_shards, staging.WORK) as folder:
        stage = staging.Staging(folder, made_with, say)
        known = stage.match(sources)
        if staging.has_finished_shards(folder):
            say(f"Resuming from the shards that an earlier command left in {folder}")
        try:
            written = _languages(sources, known, stage, tokenizer, workers, on_progress, options)
            stage.check_unchanged(sources)
            _write_index(folder, tokenizer, written)
            report = report_of({name: (of.read, of.added) for name, of in written.items()})
            report["skipped files"] = skipped
            for line in skipped_members(report):
                say(line)
            (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
            complete(folder)
        except BaseException:
            if staging.has_finished_shards(folder):
                say(f"Finished shards stay in {folder}; the same command resumes from them")
            raise


def _languages(
    sources: dict[str, Sources],
    known: dict[str, FirstPass],
    stage: staging.Staging,
    tokenizer: Tokenizer,
    workers: int | None,
    on_progress: OnProgress | None,
    options: Options,
) -> dict[str, LanguageShards]:
    """Writes the shards of all languages, the largest first.

    known: the results of first passes that need not be made again
    """
    sizes = {language: _size(text) for language, text in sources.items()}
    with Workers(workers, len(sources), sum(sizes.values())) as pool:
        jobs = {
            language: (stage.folder, language, sources[language], options)
            for language in sorted(sources, key=lambda language: -sizes[language])
        }
        new = {language: job for language, job in jobs.items() if language not in known}
        first = None if on_progress is None else lambda done: on_progress(done, None)
        found = known | pool.each(_first_pass, new, first)
        rules = choose((each.text for each in found.values()), options.heldout)
        stage.match_rules(rules)
        total = sum(each.characters for each in found.values())
        jobs = {
            language: (*jobs[language], found[language], rules[language], tokenizer.model_path)
            for language in sorted(jobs, key=lambda language: -found[language].characters)
        }
        second = None if on_progress is None else lambda done: on_progress(done, total)
        written = pool.each(_write_language, jobs, second)
    return {language: written[language] for language in sources}


def _size(text: Sources) -> int:
    """Bytes of a language's sources; a source of unknown size counts as worth a process."""
    return sum(source.size() or SMALL for source in text)


def _write_index(folder: Path, tokenizer: Tokenizer, written: dict[str, LanguageShards]) -> None:
    """Joins the rows of all languages, which count from 0 in each."""
    shards = tokens = 0
    for of in written.values():
        of.samples[SHARD_FIELD] += shards
        of.samples[START_FIELD] += tokens
        shards += len(of.shards)
        tokens += sum(split.tokens for split in of.totals)
    write_index(
        folder,
        tokenizer,
        {language: of.totals for language, of in written.items()},
        np.concatenate([of.shards for of in written.values()]),
        np.concatenate([of.samples for of in written.values()], axis=1),
    )


def _first_pass(
    progress: JobProgress, folder: Path, language: str, text: Sources, options: Options
) -> FirstPass:
    found = first_pass(
        language, text, progress, options.heldout, options.drop_copies, options.skip_bad_lines
    )
    staging.save_first_pass(folder / staging.WORK, language, found)
    return found


def _write_language(
    progress: JobProgress,
    folder: Path,
    language: str,
    text: Sources,
    options: Options,
    found: FirstPass,
    rule: HeldOutRule,
    model_path: Path,
) -> LanguageShards:
    work = folder / staging.WORK
    with ExitStack() as stack:
        # The last is closed first: where the held-out split is finished, the other is as well.
        heldout, train = (
            stack.enter_context(
                TokenTars(folder, language, split, staging.journal(work, language, split))
            )
            for split in reversed(SPLITS)
        )
        writers = [train, heldout]
        if all(writer.done for writer in writers):
            read = staging.load_read(work, language)
            progress(found.characters)
        else:
            tokenizer = Tokenizer.load(model_path.parent)
            read, digest = _add_all(progress, text, found, rule, options, tokenizer, writers)
            if found.digest and digest != found.digest:
                staging.forget(work, language)
                raise staging.changed(language, text)
            staging.save_read(work, language, read)
    totals = (train.totals, heldout.totals)
    shards = [
        (*counts, np.frombuffer(sha256, np.uint8))
        for writer in writers
        for *counts, sha256 in writer.shards
    ]
    rows = [row for writer in writers for row in writer.samples]
    samples = np.array(rows, np.int64).reshape(-1, len(SAMPLE_FIELDS)).T
    samples[SHARD_FIELD, totals[0].samples :] += totals[0].shards
    samples[START_FIELD, totals[0].samples :] += totals[0].tokens
    added = (train.added, heldout.added)
    return LanguageShards(read, added, totals, np.array(shards, SHARD), samples)


def _add_all(
    progress: JobProgress,
    text: Sources,
    found: FirstPass,
    rule: HeldOutRule,
    options: Options,
    tokenizer: Tokenizer,
    writers: list[TokenTars],
) -> tuple[ReadCounts, int]:
    """Tokenizes what the writers of the splits do not have yet, and adds it.

    Returns the counts of what was read, and the digest of all of it.
    """
    starts = [writer.start for writer in writers]
    read = TextBatches(text, found, rule, starts, options.skip_bad_lines)
    left = found.characters
    with closing(tokenized(read, tokenizer, progress.threads)) as batches:
        for characters, by_split in batches:
            for writer, ids in zip(writers, by_split, strict=True):
                if ids.added != SplitCounts():
                    writer.add(ids)
            progress(min(characters, left))
            left -= min(characters, left)
    progress(left)  # line ends and the like, which the first pass counted
    return read.counts, read.digest.intdigest()
