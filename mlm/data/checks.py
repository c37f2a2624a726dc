"""What a run checks of its data before it starts: paths, tokenizer, shards, order of samples."""

from dataclasses import dataclass, replace
from pathlib import Path

from mlm.config import DataConfig, TrainConfig
from mlm.data.index import FILE, Index
from mlm.data.order.mix import Mix, limits
from mlm.data.order.order import SampleOrder
from mlm.data.reading.remote import cache_folder, check_room, is_url, open_index, tokenizer_beside
from mlm.errors import DataError, UserError
from mlm.tokenizer.folder import open_for_training
from mlm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class DataFacts:
    """What a run is bound to: the hashes of its data, and the rows of its vocabulary.

    vocab_size: of the model; the tokenizer's, padded, unless the config has another
    untrained: languages that are evaluated and not trained on
    """

    index_hash: str
    tokenizer_hash: str
    vocab_size: int
    untrained: tuple[str, ...]


def with_tokenizer(data: DataConfig) -> DataConfig:
    """The settings with absolute `shards` and `tokenizer`, which may be the one in the shards."""
    assert data.shards is not None, "there are shards to train on"
    if is_url(data.shards):
        cache = data.cache and str(cache_folder(data.cache))
        index = open_index(data.shards, cache)
        tokenizer = tokenizer_beside(index, data.tokenizer)
        if tokenizer is None:
            raise _no_tokenizer(data.shards)
        return replace(data, shards=str(index.folder), tokenizer=str(tokenizer), cache=cache)
    folder = Path(data.shards).resolve()
    tokenizer = Path(data.tokenizer).resolve() if data.tokenizer else folder / "tokenizer"
    if data.tokenizer is None and (folder / FILE).is_file() and not tokenizer.is_dir():
        raise _no_tokenizer(data.shards)
    return replace(data, shards=str(folder), tokenizer=str(tokenizer))


def _no_tokenizer(shards: str) -> UserError:
    return UserError(
        f"data.tokenizer is not given, and data.shards={shards} holds no tokenizer; add "
        f"data.tokenizer=DIR, the one that these shards were written with"
    )


def check_data(config: TrainConfig) -> DataFacts:
    """Opens tokenizer and shards as a run would; raises UserError for what would end the run.

    The paths of `config.data` are those that `with_tokenizer` or `prepare` returned.
    """
    data, asked = config.data, config.model.vocab_size
    assert data.shards is not None
    assert data.tokenizer is not None
    index = open_index(data.shards, data.cache)
    tokenizer = open_for_training(Path(data.tokenizer))
    index.check_tokenizer(tokenizer)
    _check_shards(index, data.on_bad_shard == "skip", data.max_bad_shards)
    if asked is not None and asked < tokenizer.size:
        raise UserError(
            f"model.vocab_size={asked} is below the {tokenizer.size} ids of the tokenizer "
            f"{data.tokenizer}; leave it null, or give {tokenizer.padded_size}"
        )
    sample_order(config, index)
    evaluated = _check_evaluation(config, index, tokenizer)
    used = [n for n, name in enumerate(index.languages) if data.weights.get(name, 1.0)]
    check_room(index, used, data.seq_len - 1, data.shuffle_window, data.cache_gb)
    trained = {index.languages[n] for n in used if index.train_tokens[n]}
    untrained = tuple(name for name in evaluated if name not in trained)
    return DataFacts(index.hash, tokenizer.hash, asked or tokenizer.padded_size, untrained)


def _check_evaluation(config: TrainConfig, index: Index, tokenizer: Tokenizer) -> list[str]:
    """The languages that are evaluated; raises UserError unless there is one."""
    if config.eval.shards:
        index = open_index(config.eval.shards, config.data.cache)
        index.check_tokenizer(tokenizer)
        _check_shards(index, skip=False, max_bad=0)
    if not any(index.heldout_tokens):
        raise DataError(
            f"no language of {index.folder} has held-out text to evaluate on; write the shards "
            f"again from more text, or give text of your own as eval.corpus=DIR"
        )
    held_out = zip(index.languages, index.heldout_tokens, strict=True)
    return [name for name, tokens in held_out if tokens]


def _check_shards(index: Index, skip: bool, max_bad: int) -> None:
    """Raises DataError for a shard that is missing or has another size.

    skip: raises only for a shard of held-out text, or for more than `max_bad` shards
    """
    index.verify_arrays()
    for found, bad in enumerate(index.bad_shards(), 1):
        if not skip or index.split_of(index.shard_row(bad.shard))[1] != "train":
            raise bad
        if found > max_bad:
            raise DataError(
                f"more than data.max_bad_shards={max_bad} shards of {index.folder} are bad, the "
                f"last is {bad.shard}; copy the shards again, or allow more"
            )


def sample_order(config: TrainConfig, index: Index) -> SampleOrder:
    """The order of a run's samples.

    Raises DataError where a language has no whole block, and UserError for a language mix that is
    impossible with the languages of the index or ends before the run does.
    """
    data, batch = config.data, config.train.global_batch_size
    for name, given in (("weights", data.weights), ("max_epochs_of", data.max_epochs_of)):
        for language in given:
            if language not in index.languages:
                raise UserError(
                    f"data.{name} has {language}, which is not a language of {index.folder}; they "
                    f"are {', '.join(index.languages)}"
                )
    weights = [data.weights.get(name, 1.0) for name in index.languages]
    if not any(weights):
        raise UserError("data.weights is 0 for all languages; give one of them more than 0")
    blocks = [tokens // (data.seq_len - 1) for tokens in index.train_tokens]
    mix = Mix(
        index.train_tokens,
        [(0, data.alpha), *((step * batch, alpha) for step, alpha in data.alpha_schedule)],
        weights,
        limits(blocks, index.languages, data.max_epochs, data.max_epochs_of),
    )
    order = SampleOrder(
        index.train_tokens, index.languages, data.seq_len, mix, config.seed, data.shuffle_window
    )
    if mix.samples is not None and mix.samples < config.train.steps * batch:
        steps = mix.samples // batch
        raise UserError(
            f"train.steps={config.train.steps} takes {config.train.steps * batch:,} samples, and "
            f"data.max_epochs and data.max_epochs_of allow {mix.samples:,}; choose "
            + (f"train.steps={steps} or less, or more epochs" if steps else "more epochs")
        )
    return order
