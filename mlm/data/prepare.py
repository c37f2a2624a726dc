"""A corpus made ready for training, once, and the check of data before any process starts."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from mlm.config import TokenizerConfig, TrainConfig
from mlm.data.index import FILE, Index
from mlm.data.order.mix import Mix, limits
from mlm.data.order.order import SampleOrder
from mlm.data.reading.remote import cache_folder, check_room, is_url, open_index, tokenizer_beside
from mlm.data.writing import shards
from mlm.data.writing.shards import Options
from mlm.errors import DataError, UserError
from mlm.files.locks import lock
from mlm.text import corpus as texts
from mlm.tokenizer import training
from mlm.tokenizer.ids import MODEL_FILE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tracking.progress import progress

Show = Callable[[int, int], None]

FORMAT = 3  # one more when the same text and settings make other tokens or shards


@dataclass(frozen=True)
class DataFacts:
    """What a run is bound to: its data's hashes, and the rows of its vocabulary."""

    index_hash: str
    tokenizer_hash: str
    vocab_size: int  # of the model: the tokenizer's, padded, where the config leaves it open


def prepare(config: TrainConfig, folder: Path, console: Console) -> TrainConfig:
    """Makes tokenizer and shards of `data.corpus` under `folder`, or finds them there.

    What is found was made of the same bytes with the same settings: `folder/<key>/`. The tokenizer
    does not depend on the run's seed, so that runs with several seeds share their tokens. Returns
    the config with `data.tokenizer` and `data.shards` as absolute paths. Raises `UserError`.
    """
    data = config.data
    assert data.corpus is not None, "there is a corpus to prepare"
    corpus = texts.resolve(data.corpus)
    settings = replace(
        TokenizerConfig(),
        vocab_size=data.vocab_size,
        alpha=data.alpha,
        on_bad_line=data.on_bad_line,
    )
    options = Options(data.dedup, data.on_bad_line == "skip")
    given = Tokenizer.load(Path(data.tokenizer)) if data.tokenizer else None
    made_by = [given.hash] if given else [settings.vocab_size, settings.alpha]
    made_by += [data.dedup, data.on_bad_line]
    with progress(console, f"Looking at the corpus {data.corpus}") as show:
        key = corpus_key(corpus, made_by, show)
    place = folder / key
    tokenizer = Path(data.tokenizer) if data.tokenizer else place / "tokenizer"
    with _alone(place, console):
        if not tokenizer.exists():
            train_tokenizer(settings, corpus, tokenizer, console)
        if not (place / "shards").exists():
            write_shards(corpus, tokenizer, place / "shards", data.workers, console, options)
    ready = {"tokenizer": str(tokenizer.resolve()), "shards": str((place / "shards").resolve())}
    return replace(config, data=replace(data, **ready))


def train_tokenizer(
    settings: TokenizerConfig, corpus: Path, out: Path, console: Console
) -> Tokenizer:
    """Trains the tokenizer that `settings` describe on `corpus` (not `settings.corpus`)."""
    with progress(console, f"Training a tokenizer of {settings.vocab_size:,} ids") as show:
        training.train(
            corpus,
            out,
            vocab_size=settings.vocab_size,
            alpha=settings.alpha,
            sample_bytes=settings.sample_bytes,
            character_coverage=settings.character_coverage,
            seed=settings.seed,
            on_progress=show,
            skip_bad_lines=settings.on_bad_line == "skip",
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
    """Writes shards, with a copy of their tokenizer inside, so that they are enough to train on."""
    loaded, record = Tokenizer.load(tokenizer), training.RECORD

    def complete(folder: Path) -> None:
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
            complete=complete,
        )


def with_tokenizer(config: TrainConfig) -> TrainConfig:
    """The config with absolute `data.shards` and `data.tokenizer`, which may be the shards' own."""
    data = config.data
    assert data.shards is not None, "there are shards to train on"
    if is_url(data.shards):
        return _with_remote(config)
    folder = Path(data.shards).resolve()
    tokenizer = Path(data.tokenizer).resolve() if data.tokenizer else folder / "tokenizer"
    if data.tokenizer is None and (folder / FILE).is_file() and not tokenizer.is_dir():
        raise _no_tokenizer(data.shards)
    paths = {"shards": str(folder), "tokenizer": str(tokenizer)}
    return replace(config, data=replace(data, **paths))


def _with_remote(config: TrainConfig) -> TrainConfig:
    data = config.data
    cache = data.cache and str(cache_folder(data.cache))
    index = open_index(str(data.shards), cache)
    tokenizer = tokenizer_beside(index, data.tokenizer)
    if tokenizer is None:
        raise _no_tokenizer(data.shards)
    places = {"shards": str(index.folder), "tokenizer": str(tokenizer), "cache": cache}
    return replace(config, data=replace(data, **places))


def _no_tokenizer(shards: str | None) -> UserError:
    return UserError(
        f"data.tokenizer is not given, and data.shards={shards} holds no tokenizer; add "
        f"data.tokenizer=DIR, the one that these shards were written with"
    )


def check_data(config: TrainConfig) -> DataFacts:
    """Opens tokenizer and shards as a run would; raises `UserError` for what it would die of."""
    data, asked = config.data, config.model.vocab_size
    assert data.shards is not None, "with_tokenizer or prepare came before"
    assert data.tokenizer is not None, "with_tokenizer or prepare came before"
    index = open_index(data.shards, data.cache)
    tokenizer = Tokenizer.load(Path(data.tokenizer))
    index.check_tokenizer(tokenizer)
    _check_shards(index, data.on_bad_shard == "skip", data.max_bad_shards)
    if asked is not None and asked < tokenizer.size:
        raise UserError(
            f"model.vocab_size={asked} is below the {tokenizer.size} ids of the tokenizer "
            f"{data.tokenizer}; leave it null, or give {tokenizer.padded_size}"
        )
    sample_order(config, index)
    used = [n for n, name in enumerate(index.languages) if data.weights.get(name, 1.0)]
    check_room(index, used, data.seq_len - 1, data.shuffle_window, data.cache_gb)
    return DataFacts(index.hash, tokenizer.hash, asked or tokenizer.padded_size)


def _check_shards(index: Index, skip: bool, most: int) -> None:
    """Raises `DataError` for a shard that is missing or has another size; with `skip`, where it is
    of held-out text, or one of more than `most`."""
    index.verify_arrays()
    for found, bad in enumerate(index.bad_shards(), 1):
        if not skip or index.split_of(index.shard_row(bad.shard))[1] != "train":
            raise bad
        if found > most:
            raise DataError(
                f"more than data.max_bad_shards={most} shards of {index.folder} are bad, the last "
                f"is {bad.shard}; copy the shards again, or allow more"
            )


def sample_order(config: TrainConfig, index: Index) -> SampleOrder:
    """The order of a run's samples; raises `DataError` where a language has no whole block, and
    `UserError` for a mix that these languages do not give."""
    data, batch = config.data, config.train.global_batch_size
    for name, given in (("weights", data.weights), ("max_epochs_of", data.max_epochs_of)):
        for language in given:
            if language not in index.languages:
                raise UserError(
                    f"data.{name} has {language}, which is no language of {index.folder}; they are "
                    f"{', '.join(index.languages)}"
                )
    factors = [data.weights.get(name, 1.0) for name in index.languages]
    if not any(factors):
        raise UserError("data.weights leaves out all languages; give one of them more than 0")
    blocks = [tokens // (data.seq_len - 1) for tokens in index.train_tokens]
    mix = Mix(
        index.train_tokens,
        [(0, data.alpha), *((step * batch, alpha) for step, alpha in data.alpha_schedule)],
        factors,
        limits(blocks, index.languages, data.max_epochs, data.max_epochs_of),
    )
    order = SampleOrder(
        index.train_tokens, index.languages, data.seq_len, mix, config.seed, data.shuffle_window
    )
    if mix.samples is not None and mix.samples < config.train.steps * batch:
        fewer = mix.samples // batch
        raise UserError(
            f"train.steps={config.train.steps} takes {config.train.steps * batch:,} samples, and "
            f"{mix.samples:,} are what data.max_epochs and data.max_epochs_of allow; choose "
            + (f"train.steps={fewer} or less, or more epochs" if fewer else "more epochs")
        )
    return order


def corpus_key(corpus: Path, made_by: Sequence[str | int | float], show: Show) -> str:
    """A name for what is made of the bytes of a corpus in a given way: 16 hex digits."""
    languages = texts.languages(corpus)
    total = sum(source.size() for text in languages.values() for source in text)
    rows, done = [], 0
    for language, text in languages.items():
        for source in text:
            rows.append([language, source.name, source.digest()])
            done += source.size()
            show(done, total)
    text = json.dumps([FORMAT, list(made_by), rows])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@contextmanager
def _alone(place: Path, console: Console) -> Iterator[None]:
    """One process at a time makes what belongs in `place`; the others wait and find it made."""
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
            _leave_nothing(place, new)
            raise


def _leave_nothing(place: Path, new: list[Path]) -> None:
    """Takes away the folder of a corpus that could not be used, unless something is in it, and
    those that were made for it, the innermost first."""
    if [path.name for path in place.iterdir()] == ["lock"]:
        (place / "lock").unlink()
        for folder in dict.fromkeys([place, *new]):
            if any(folder.iterdir()):
                return
            folder.rmdir()
