"""Tokenizer and token shards, made of a corpus for the commands and for training."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from mlm.config import DataConfig, EvalConfig, TokenizerConfig, TrainConfig
from mlm.console import counted
from mlm.data.index import Index
from mlm.data.reading.remote import is_url
from mlm.data.writing import drops, shards
from mlm.data.writing.shards import Options
from mlm.errors import DataError, UserError
from mlm.files.locks import lock
from mlm.text import corpus as texts
from mlm.text.sources import TextForm
from mlm.tokenizer import training
from mlm.tokenizer.folder import open_for_training
from mlm.tokenizer.ids import MODEL_FILE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tracking.progress import progress

NAMES = re.compile(
    r"(?<![\w.])(vocab_size|character_coverage|(?:field|document|on_bad_line|heldout)(?==))"
)
FORMAT = 5  # increased when the same text and settings give other tokens or shards


@contextmanager
def _names_of_train() -> Iterator[None]:
    """Errors name the settings of `mlm tokenizer` and `mlm shards`; here, those of `mlm train`."""
    try:
        yield
    except DataError as error:
        raise DataError(NAMES.sub(r"data.\1", str(error))) from None


@_names_of_train()
def prepare(data: DataConfig, folder: Path, console: Console) -> DataConfig:
    """Makes tokenizer and shards of `data.corpus` under `folder`, or finds them there.

    Each is in a `folder/<key>/`, where the key is of the bytes of the corpus and of the settings
    that the one or the other depends on. The tokenizer does not depend on a run's seed or its
    held-out part, so that runs with others share it. Returns the settings with `tokenizer` and
    `shards` as absolute paths. Raises UserError.
    """
    assert data.corpus is not None, "there is a corpus to prepare"
    corpus = texts.resolve(data.corpus)
    settings = replace(
        TokenizerConfig(),
        vocab_size=data.vocab_size,
        alpha=data.alpha,
        character_coverage=data.character_coverage,
        field=data.field,
        document=data.document,
        on_bad_line=data.on_bad_line,
    )
    form = TextForm(data.field, data.document)
    options = Options(data.dedup, data.on_bad_line == "skip", form, data.heldout)
    with progress(console, f"Reading the corpus {data.corpus}") as show:
        read = corpus_digest(corpus, show)
    reading = [data.field, data.document, data.on_bad_line]
    if data.tokenizer:
        tokenizer = Path(data.tokenizer)
    else:
        of_training = [settings.vocab_size, settings.alpha, settings.character_coverage]
        place = folder / key(read, [*of_training, *reading])
        tokenizer = place / "tokenizer"
        with _locked(place, console):
            if not tokenizer.exists():
                train_tokenizer(settings, corpus, tokenizer, console)
    made_with = [open_for_training(tokenizer).hash, data.dedup, data.heldout, *reading]
    place = folder / key(read, made_with)
    with _locked(place, console):
        if (place / "shards").exists():
            console.print(_summary(place / "shards"), soft_wrap=True)
        else:
            write_shards(corpus, tokenizer, place / "shards", data.workers, console, options)
    tokenizer, made = tokenizer.resolve(), (place / "shards").resolve()
    return replace(data, tokenizer=str(tokenizer), shards=str(made))


def prepare_evaluation(config: TrainConfig, folder: Path, console: Console) -> EvalConfig:
    """Makes shards of `eval.corpus`, all of it held out, with the run's tokenizer.

    Returns the settings with an absolute `shards`, which is None where they have neither. Raises
    UserError.
    """
    given = config.eval
    if given.corpus:
        data = replace(config.data, corpus=given.corpus, shards=None, heldout=1.0, dedup=False)
        return replace(given, shards=prepare(data, folder, console).shards)
    if given.shards and not is_url(given.shards):
        return replace(given, shards=str(Path(given.shards).resolve()))
    return given


def train_tokenizer(
    settings: TokenizerConfig, corpus: Path, out: Path, console: Console
) -> Tokenizer:
    """Trains the tokenizer that `settings` describe on `corpus` (not `settings.corpus`)."""
    title = f"Training a tokenizer of {settings.vocab_size:,} ids"
    with progress(console, f"{title}: reading the corpus") as show:
        training.train(
            corpus,
            out,
            vocab_size=settings.vocab_size,
            alpha=settings.alpha,
            sample_bytes=settings.sample_bytes,
            character_coverage=settings.character_coverage,
            seed=settings.seed,
            on_progress=show,
            on_fit=lambda size: show.stage(f"{title} on {decimal(size)} of it"),
            skip_bad_lines=settings.on_bad_line == "skip",
            form=TextForm(settings.field, settings.document),
        )
    return Tokenizer.load(out)


def write_shards(
    corpus: Path,
    tokenizer: Path,
    out: Path,
    workers: int | None,
    console: Console,
    options: Options,
) -> None:
    """Writes shards with a copy of their tokenizer, so that training needs nothing else, and says
    what they hold and what was dropped."""
    loaded, record = open_for_training(tokenizer), training.RECORD

    def add_tokenizer(folder: Path) -> None:
        (folder / "tokenizer").mkdir(exist_ok=True)
        (folder / "tokenizer" / MODEL_FILE).write_bytes(loaded.model)
        if (tokenizer / record).is_file():
            shutil.copyfile(tokenizer / record, folder / "tokenizer" / record)

    with progress(console, "Writing token shards") as show:
        shards.write(
            corpus,
            loaded,
            out,
            workers=workers,
            on_progress=show,
            options=options,
            say=console.print,
            complete=add_tokenizer,
        )
    console.print(drops.table(json.loads((out / shards.REPORT).read_text())))
    console.print(_summary(out), soft_wrap=True)


def _summary(folder: Path) -> str:
    index = Index.open(folder)
    return (
        f"Shards of {counted(len(index.languages), 'language')} are in {folder}: "
        f"{sum(index.train_tokens):,} tokens to train on, {sum(index.heldout_tokens):,} held out "
        f"({', '.join(index.languages)})"
    )


def corpus_digest(corpus: Path, show: Callable[[int, int], None]) -> str:
    """A hash of the languages, names and bytes of a corpus.

    show: called with the bytes read and their total
    """
    languages = texts.languages(corpus)
    total = sum(source.size() for text in languages.values() for source in text)
    rows, done = [], 0
    for language, text in languages.items():
        for source in text:
            rows.append([language, source.name, source.digest()])
            done += source.size()
            show(done, total)
    return _hash(rows)


def key(digest: str, made_with: Sequence[str | int | float]) -> str:
    """A name for what is made of a corpus with given settings: 16 hex digits."""
    return _hash([FORMAT, digest, list(made_with)])


def _hash(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


@contextmanager
def _locked(place: Path, console: Console) -> Iterator[None]:
    """One process at a time prepares the folder `place`; the others wait, and find it prepared."""
    new = [path for path in (place, *place.absolute().parents) if not os.path.exists(path)]
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / "lock").open("w")
        if not lock(file, wait=False):
            console.print(f"Waiting for the process that is preparing {place}")
            lock(file)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written ({error.strerror}); choose another run.dir"
        ) from None
    with file:
        try:
            yield
        except UserError:
            _remove_unused(place, new)
            raise


def _remove_unused(place: Path, new: list[Path]) -> None:
    """Removes the folder of a corpus that could not be used, unless it holds something, and the
    folders that were created for it, the innermost first."""
    if [path.name for path in place.iterdir()] == ["lock"]:
        (place / "lock").unlink()
        for folder in dict.fromkeys([place, *new]):
            if any(folder.iterdir()):
                return
            folder.rmdir()
