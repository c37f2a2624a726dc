"""What a rank holds while it trains; for a test and a benchmark."""

from dataclasses import replace

import torch

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.config import OptimConfig
from mlm.model.config import ModelConfig
from mlm.model.masked_lm import masked_lm_layers
from mlm.training.optimizer import make_adamw
from parallel.engine.build import build_engine
from parallel.engine.interface import Engine, EngineSettings
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.memory import state_bytes

SEQ_LEN, MASKED, MICRO_BATCHES = 16, 4, 2  # short ones: activations are not what is measured


def model(vocab_size: int, hidden: int, layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=SEQ_LEN + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def build(config: ModelConfig, layout: Layout, dtype: torch.dtype) -> Engine:
    grid = make_grid(layout)
    fused = grid.pp is None or grid.dp is None  # as `mlm train` has it on a CPU
    return build_engine(
        masked_lm_layers(config, group=grid.tp, seed=1, seq_len=SEQ_LEN, masked=MASKED),
        grid,
        lambda named: make_adamw(named, OptimConfig(lr=1e-3), fused),
        EngineSettings(1, MICRO_BATCHES, 1.0, dtype),
    )


def step(engine: Engine, config: ModelConfig, number: int) -> float:
    """One optimizer step over its own micro-batches; returns the loss."""
    dp, dp_rank = engine.grid.layout.dp, engine.grid.dp_rank
    batches = [_batch(config, number, k * dp + dp_rank) for k in range(MICRO_BATCHES)]
    return engine.train_batch(batches, 1e-3).loss


def _batch(config: ModelConfig, step: int, number: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(1000 * step + number)
    ids = torch.randint(4, config.padded_vocab_size(), (1, SEQ_LEN), generator=generator)
    positions = torch.arange(0, SEQ_LEN, SEQ_LEN // MASKED)[None]
    targets = ids.gather(1, positions)
    seen = Visibility((1, SEQ_LEN, SEQ_LEN))
    batch = MicroBatch(ids, seen, positions, targets, torch.zeros(1, dtype=torch.long))
    return replace(batch, loss_scale=1 / MASKED)


def theory(engine: Engine) -> int:
    """Bytes of this rank's state."""
    sizes = [getattr(p, "ds_numel", p.numel()) for _, p in engine.named_parameters()]
    return state_bytes(sum(sizes), engine.grid.layout, engine.dtype.itemsize).total
