"""Runs a function as several real processes over gloo.

They are forked from a process that has imported what they need, which takes a fraction of the
time of starting Python and torch again. Every call forks new ones, since DeepSpeed keeps its groups
in globals.
"""

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed  # noqa: F401  (imported once here, not once in every rank)

# What an engine imports when it is built, 900 modules: 5 s of each rank unless its parent has them.
LATE = (
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.pipe.engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "torch._dynamo",
)
TIMEOUT = 240  # seconds that all ranks together may take
STACKS = signal.SIGUSR2  # asks a rank for the stacks of its threads


def run_ranks(world: int, function: Callable, *args: Any) -> list[Any]:
    """`function(*args)` on `world` ranks with torch.distributed set up; their results by rank.

    The first failure on any rank is raised here with that rank's traceback.
    """
    _import_late()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, world, folder, function, args), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, Path(folder))
            return [
                torch.load(Path(folder) / f"{rank}.result", weights_only=False)
                for rank in range(world)
            ]
        finally:
            for process in processes:
                process.kill()
                process.join()


@cache
def _import_late() -> None:
    for name in LATE:
        import_module(name)
    gc.collect()
    gc.freeze()  # or the first collection of every rank takes a second, and copies all these pages


def _wait(processes: list, folder: Path) -> None:
    """Waits for all, or until the first fails: the others may wait for it in a collective."""
    end = time.monotonic() + TIMEOUT
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(0.01)
        if (
            any(process.exitcode not in (None, 0) for process in processes)
            or time.monotonic() > end
        ):
            break
    failures = sorted(folder.glob("*.failure"), key=lambda path: path.stat().st_mtime_ns)
    if failures:
        raise AssertionError(f"rank {failures[0].stem}:\n{failures[0].read_text()}")
    codes = [process.exitcode for process in processes]
    assert codes == [0] * len(codes), (
        f"exit codes of the ranks (None: still running): {codes}{_stacks(processes, folder)}"
    )


def _stacks(processes: list, folder: Path) -> str:
    """The stacks of the ranks that are still running."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, STACKS)
    time.sleep(1.0)  # faulthandler writes from the signal's handler, in no time
    return "".join(
        f"\nstacks of rank {path.stem}:\n{path.read_text()}"
        for path in sorted(folder.glob("*.stacks"))
        if path.stat().st_size
    )


def _rank(rank: int, world: int, folder: str, function: Callable, args: tuple) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of pytest
    stacks = open(f"{folder}/{rank}.stacks", "w")  # noqa: SIM115  (open until the rank ends)
    faulthandler.register(STACKS, stacks)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
        )
        result = function(*args)
        torch.save(result, Path(folder) / f"{rank}.result")
        dist.barrier()
    except BaseException:
        (Path(folder) / f"{rank}.failure").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # groups of a forked process are not worth tearing down
