"""The parts of a pretraining run, made from its config on every rank."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlm.batch.micro_batch import MicroBatch
from mlm.config.settings import TrainConfig, layout
from mlm.data.batches.batches import HeldOutBatches, TrainingBatches
from mlm.data.batches.masking import Masking
from mlm.data.batches.words import Words
from mlm.data.index import Index
from mlm.data.prepare import sample_order
from mlm.data.reading.reader import TokenReader
from mlm.data.reading.remote import open_index, open_store
from mlm.model.flops import training_flops_per_token
from mlm.model.masked_lm import masked_lm_layers
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.start import first_weights
from mlm.training.optimizer import make_adamw
from mlm.weights.dtypes import BY_SETTING
from parallel.engine.deepspeed import Engine, EngineSettings, build_engine
from parallel.engine.state import reset
from parallel.groups import ProcessGrid, make_grid
from parallel.keys import key


@dataclass(frozen=True)
class Parts:
    """What the training loop works with."""

    index: Index
    batches: TrainingBatches
    heldout: HeldOutBatches
    grid: ProcessGrid
    engine: Engine
    flops_per_token: float  # forward and backward
    begin_again: Callable[[], None]  # puts back the state that the engine was built with


def build(config: TrainConfig, resuming: bool = False) -> Parts:
    """Builds all parts; a collective. Raises `UserError` for data that does not fit.

    resuming: the caller restores a checkpoint into the engine, so `config.weights` is not read
    """
    data, train = config.data, config.train
    assert data.shards is not None
    index = open_index(data.shards, data.cache)
    batches = training_batches(config, index, train.micro_batch_size)
    heldout = HeldOutBatches(
        batches.reader,
        batches.masking,
        data.seq_len,
        train.micro_batch_size,
        config.eval.blocks_per_language,
        data.isolate_documents,
    )
    grid = make_grid(layout(config))
    masked = batches.masking.positions(data.seq_len)
    first = None
    if config.weights is not None and not resuming:
        first = first_weights(config)
    layers = masked_lm_layers(
        config.model,
        group=grid.tp,
        seed=config.seed,
        attention=train.attention,
        seq_len=data.seq_len,
        masked=masked,
        fill=first and first.fill,
    )
    settings = EngineSettings(
        train.micro_batch_size,
        grid.layout.grad_accum_steps(train.global_batch_size, train.micro_batch_size),
        config.optim.clip,
        BY_SETTING[train.dtype],
        train.recompute,
    )
    # On a CPU the fused optimizer rounds the end of a data rank's part otherwise than the rest, and
    # the parts of two stages end at different places of the tied embedding.
    fused = train.device == "cuda" or grid.pp is None or grid.dp is None
    engine = build_engine(
        layers, grid, lambda named: make_adamw(named, config.optim, fused), settings
    )
    exact = None if BY_SETTING[train.dtype] == torch.float32 else first  # masters are not rounded
    if exact is not None:
        exact.masters(engine)

    def begin_again() -> None:
        reset(engine, BY_SETTING[train.dtype])
        if exact is not None:
            exact.masters(engine)

    flops = training_flops_per_token(config.model, data.seq_len, masked)
    return Parts(index, batches, heldout, grid, engine, flops, begin_again)


def training_batches(config: TrainConfig, index: Index, micro_batch_size: int) -> TrainingBatches:
    """What a run is trained on, in micro-batches of any size; raises `UserError` for data that does
    not fit."""
    return TrainingBatches(
        TokenReader(index, open_store(index, config.data.cache_gb)),
        sample_order(config, index),
        masking(config, index),
        config.seed,
        micro_batch_size,
        config.train.global_batch_size,
        config.data.isolate_documents,
    )


def masking(config: TrainConfig, index: Index) -> Masking:
    """How the rows of a run are masked."""
    data, words = config.data, None
    if data.masking == "word":
        assert data.tokenizer is not None, "data.tokenizer is resolved"
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


def own_batches(parts: Parts, step: int) -> list[MicroBatch]:
    """The micro-batches of this data rank in a step: every dp-th of the global batch."""
    dp, dp_rank = parts.grid.layout.dp, parts.grid.dp_rank
    return parts.batches.of_step(step, range(dp_rank, parts.batches.micro_batches, dp))


def prepared(
    batches: list[MicroBatch], parts: Parts, seed: int, step: int, masked: int, losses: torch.Tensor
) -> list[MicroBatch]:
    """The micro-batches with the scale that makes the engine's mean the mean over the `masked`
    tokens of the global batch, and the dropout keys of their numbers in it."""
    dp, dp_rank = parts.grid.layout.dp, parts.grid.dp_rank
    scale = len(batches) * dp / max(masked, 1)
    return [
        replace(
            batch,
            loss_scale=scale,
            dropout_key=key(seed, "dropout", step, position * dp + dp_rank),
            losses=losses,
        )
        for position, batch in enumerate(batches)
    ]
