"""The ranks of a run as one: their start, their logs, and what they decide together."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mlm.config import TrainConfig
from mlm.errors import UserError
from parallel.groups import ProcessGrid

TIMEOUT = timedelta(minutes=30)

Result = TypeVar("Result")


def log_to_file(run: Path, rank: int) -> None:
    """Sends what this process prints to `logs/rank-00003.log`, libraries in C included.

    Rank 0 keeps its standard output: the progress of the run.
    """
    folder = run / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"rank-{rank:05d}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 2)
    if rank != 0:
        os.dup2(log, 1)
    os.close(log)


def start_process_group(device: str) -> torch.device:
    """Joins the ranks that torchrun started, by nccl or gloo; returns this rank's device."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if dist.is_initialized():  # by what called us, as the tests do
        return torch.device("cpu")
    if device == "cuda":
        # Where a scheduler shows each process one GPU, that is device 0 whatever the local rank.
        chosen = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", device_id=chosen, timeout=TIMEOUT)
        return chosen
    dist.init_process_group("gloo", timeout=TIMEOUT)
    return torch.device("cpu")


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before a step: the normaliser and the digest of the global batch, and
    whether to stop."""

    normaliser: int
    digest: int
    stop: bool


def agree(
    grid: ProcessGrid,
    device: torch.device,
    batches: Sequence[Any],
    normaliser: int,
    stop: bool,
    error: UserError | None,
) -> Agreement:
    """One collective per step: counts the global batch, and no rank stops or fails alone.

    batches: this data rank's micro-batches; normaliser: theirs. Raises the first failing rank's
    error on every rank.
    """
    own = [0, 0]
    if grid.tp_rank == 0 and grid.pp_rank == 0:  # the others of a data rank have the same
        digests = torch.tensor([batch.digest for batch in batches], dtype=torch.int64)
        own = [normaliser, int(digests.sum())]
    votes = torch.tensor([*own, stop, error is not None], dtype=torch.int64, device=device)
    dist.all_reduce(votes)  # of int64, which wraps around
    normaliser, digest, stops, errors = votes.tolist()
    if errors:
        raise_together(error)
    return Agreement(normaliser, digest, stops > 0)


def raise_together(error: UserError | None) -> None:
    """Raises on every rank the error of the lowest rank that has one; a collective."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, error)
    for item in found:
        if item is not None:
            raise item


def check_resolved(config: TrainConfig) -> TrainConfig:
    """Asserts that the launcher has decided what only it can: ranks never guess."""
    assert config.parallel.dp != "auto", "parallel.dp is resolved"
    assert config.train.device != "auto", "train.device is resolved"
    assert config.data.shards, "data.shards is resolved"
    assert config.model.vocab_size, "model.vocab_size is resolved"
    return config
