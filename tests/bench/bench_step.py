"""A training step of ours against transformers' XLMRobertaXLForMaskedLM, interleaved in one run.

    python tests/bench/bench_step.py [--hidden 256 --layers 4 --vocab 250880 --seq-len 128 ...]

Both do the same work on the same batches: forward and backward pass of the masked language model
and an AdamW step, on one process. Two peers, since there are two ways to train in bf16:

- `weights in bf16`: both hold bf16 only, optimizers included; ours is a plain loop over the layers;
- `fp32 masters`: ours is the engine as `mlm train` runs it (bf16 weights, fp32 masters, gradients
  and moments), the peer what its Trainer does (fp32 weights, autocast to bf16, fused AdamW).

A CPU without instructions for bf16 takes seconds for a product of matrices: `--dtype fp32` compares
the plain loop and the engine with the peer in fp32.

Steps alternate A B A B ...; the ratio is taken pair by pair, its median is the figure.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from transformers import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM

from mlm.batch.micro_batch import IGNORED, MicroBatch
from mlm.batch.visibility import Visibility
from mlm.config import OptimConfig
from mlm.model.config import ModelConfig
from mlm.model.masked_lm import masked_lm_layers
from mlm.training.optimizer import make_adamw
from parallel.engine.build import build_engine
from parallel.engine.interface import EngineSettings
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.pipeline.stages import WholeModel, canonical_name

OPTIM = OptimConfig(lr=1e-4, clip=0.0)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def batches(config: ModelConfig, rows: int, seq_len: int, count: int) -> list[MicroBatch]:
    """Random blocks with 15 % of their positions masked."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(4, config.padded_vocab_size(), (rows, seq_len), generator=generator)
        scores = torch.rand(rows, seq_len, generator=generator)
        positions = scores.argsort(dim=1)[:, : round(0.15 * seq_len)].sort(dim=1).values
        targets = ids.gather(1, positions)
        seen = Visibility((rows, seq_len, seq_len))
        languages = torch.zeros(rows, dtype=torch.long)
        scale = 1.0 / positions.numel()
        made.append(MicroBatch(ids, seen, positions, targets, languages, scale))
    return made


def plain(config: ModelConfig, seq_len: int, dtype: torch.dtype) -> Callable[[MicroBatch], float]:
    """Our layers in a plain loop, all in `dtype`."""
    layers = masked_lm_layers(config, seq_len=seq_len)
    model = WholeModel(layers).to(dtype).train()
    named = [(canonical_name(layers, name), p) for name, p in model.named_parameters()]
    optimizer = make_adamw(named, OPTIM)

    def step(batch: MicroBatch) -> float:
        loss, _ = model(batch.input_ids, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def engine(
    config: ModelConfig, rows: int, seq_len: int, dtype: torch.dtype
) -> Callable[[MicroBatch], float]:
    """The engine that `mlm train` runs, on one process."""
    grid = make_grid(Layout())
    layers = masked_lm_layers(config, seq_len=seq_len)
    settings = EngineSettings(rows, 1, OPTIM.clip, dtype)
    built = build_engine(layers, grid, lambda named: make_adamw(named, OPTIM), settings)
    return lambda batch: built.train_batch([batch], OPTIM.lr).loss


def peer(
    config: ModelConfig, weights: torch.dtype, autocast: bool = False
) -> Callable[[MicroBatch], float]:
    """transformers' model with weights of a dtype, or under autocast to bf16."""
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "max_position_embeddings",
    )
    shape = XLMRobertaXLConfig(**{name: getattr(config, name) for name in names})
    shape._attn_implementation = "eager"
    model = XLMRobertaXLForMaskedLM(shape).train()
    torch.nn.Module.to(model, weights)  # in place; as a method, its type is lost in a decorator
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps, fused=True
    )

    def step(batch: MicroBatch) -> float:
        labels = torch.full_like(batch.input_ids, IGNORED)
        labels.scatter_(1, batch.positions, batch.targets)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(batch.input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def compare(
    ours: Callable[[MicroBatch], float], theirs: Callable, work: list[MicroBatch], title: str
) -> None:
    """Runs both in turn over the batches; the first pair warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for batch in work:
        for side, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            function(batch)
            times[side].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times[0][1:], times[1][1:], strict=True)]
    ratios.sort()
    ms = [1000 * statistics.median(side[1:]) for side in times]
    print(
        f"{title}: ours {ms[0]:.0f} ms, transformers {ms[1]:.0f} ms a step; "
        f"{statistics.median(ratios):.2f}x (from {ratios[0]:.2f} to {ratios[-1]:.2f}, "
        f"{len(ratios)} pairs)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=250880)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--rows", type=int, default=8, help="sequences of a batch")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    given = parser.parse_args()
    config = ModelConfig(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        intermediate_size=given.intermediate,
        hidden_dropout_prob=given.dropout,
        attention_probs_dropout_prob=given.dropout,
        output_dropout=False,
        max_position_embeddings=given.seq_len + 2,
    )
    work = batches(config, given.rows, given.seq_len, given.pairs + 1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {config}")
    dtype, autocast = DTYPES[given.dtype], given.dtype == "bf16"
    ours = plain(config, given.seq_len, dtype)
    compare(ours, peer(config, dtype), work, f"weights in {given.dtype}")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    ours = engine(config, given.rows, given.seq_len, dtype)
    title = "fp32 masters" if autocast else "the engine, in fp32"
    compare(ours, peer(config, torch.float32, autocast), [replace(b) for b in work], title)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
