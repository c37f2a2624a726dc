"""The training batches of a run, from its settings alone."""

from pathlib import Path

from mlm.config import TrainConfig
from mlm.data.batches.batches import TrainingBatches
from mlm.data.batches.masking import Masking
from mlm.data.batches.words import Words
from mlm.data.checks import sample_order
from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.data.reading.remote import open_index, open_store
from mlm.tokenizer.tokenizer import Tokenizer


def training_batches(config: TrainConfig, index: Index, micro_batch_size: int) -> TrainingBatches:
    """What a run is trained on, in micro-batches of any size.

    Raises `UserError` for data that does not fit the settings.
    """
    return TrainingBatches(
        TokenReader(index, open_store(index, config.data.cache_gb)),
        sample_order(config, index),
        masking(config, index),
        config.seed,
        micro_batch_size,
        config.train.global_batch_size,
        config.data.isolate_documents,
    )


def held_out_reader(config: TrainConfig, training: TokenReader) -> TokenReader:
    """Of the shards that are evaluated on: those of `eval`, or those of training."""
    if config.eval.shards is None:
        return training
    index = open_index(config.eval.shards, config.data.cache)
    return TokenReader(index, open_store(index, config.data.cache_gb))


def masking(config: TrainConfig, index: Index) -> Masking:
    """How the rows of a run are masked."""
    data, words = config.data, None
    if data.masking == "word":
        assert data.tokenizer is not None, "the launcher has resolved data.tokenizer"
        words = Words(Tokenizer.load(Path(data.tokenizer)).vocabulary)
    return Masking(
        data.mask_ratio,
        index.vocab_size,
        data.mask_ratio_schedule,
        data.masking,
        words,
        data.span_p,
        data.span_max,
    )
