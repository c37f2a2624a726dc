"""A training run as one rank: from its settings to its outcome."""

import errno
import json
import os
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from mlm import checkpoint
from mlm.config import TrainConfig, layout, load
from mlm.console import counted, plain_console
from mlm.errors import CONFIG, DONE, FAILED, DataError, StopRequested, UserError
from mlm.files.jsonl import read_rows
from mlm.health.outcome import STARTS, make_room, write_outcome
from mlm.health.watchdog import Watchdog
from mlm.plugins import import_plugins
from mlm.tracking.progress import stage
from mlm.tracking.report import Report
from mlm.tracking.screen import Screen
from mlm.tracking.trackers import Trackers, start_trackers
from mlm.training.build import TrainingRun, build
from mlm.training.loop import Loop, Progress
from mlm.training.memory import check_memory
from mlm.training.world import check_resolved, log_to_file, start_process_group
from parallel.recorder import Recorder, recording

# Of the network, of a device or of the system; others would be raised again by the same step.
OF_MACHINES = (RuntimeError, OSError, MemoryError)
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


def main(config_path: str) -> int:
    """Trains as this rank and returns the outcome's code, which `outcome.json` holds, too."""
    path = Path(config_path)
    run, rank = path.parent, int(os.environ.get("RANK", "0"))
    log_to_file(run, rank)
    progress, repeats = Progress(), False
    try:
        if rank == 0:
            make_room(run)
        config = check_resolved(load(TrainConfig, yaml.safe_load(path.read_text("utf-8"))))
        import_plugins(config.plugins)
        device = start_process_group(config.train.device)
        if device.type == "cuda":
            total = torch.cuda.mem_get_info(device)[1]
            check_memory(config, layout(config), total, 1, "GPU")
        with recording(device) as recorder:
            sentence = _train(config, run, recorder, progress)
        code = DONE
    except UserError as error:
        code, sentence = error.code, str(error)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            code, remedy = CONFIG, "free space, then start the run again"
            sentence = f"{run} cannot be written any more ({error.strerror}); {remedy}"
        else:
            repeats = not isinstance(error, OF_MACHINES)
            reason = traceback.format_exc().strip().splitlines()[-1]
            code, sentence = FAILED, f"rank {rank} failed: {reason} (its log has the traceback)"
    # The first to fail knows why: those that follow agree with it, or saw it go.
    if rank == 0 or code != DONE:
        try:
            write_outcome(run, code, sentence, progress.step, progress.eval_loss, repeats=repeats)
        except OSError:  # a full disk: rank 0's output is the one place left to say why
            print(f"mlm: {sentence}", flush=True)
    return code


def _train(config: TrainConfig, run: Path, recorder: Recorder, progress: Progress) -> str:
    main = dist.get_rank() == 0

    def at(title: str) -> AbstractContextManager[None]:
        return stage(plain_console(sys.stdout), title) if main else nullcontext()

    newest, damaged = checkpoint.choose(run)
    with at("Opening the data and building the model"):
        built = replace(build(config, newest is not None), environment=_environment(run))
    _check_data(run, built)
    manifest = None
    if newest is not None:
        with at(f"Loading {newest}"):
            manifest = _resume(built, newest)
    start = progress.step = 0 if manifest is None else manifest.step
    run_id = None if manifest is None else manifest.tracker_id
    screen = Screen(run, config.train.steps, start)
    trackers = start_trackers(run, config, run_id, screen.say) if main else Trackers()
    report = Report(run, trackers, screen, config.train.steps, start, main=main)
    for wrong in damaged:
        report.say(f"Skipped: {wrong}")
    report.say(_opening(built, start))
    code = FAILED

    def stalled(sentence: str) -> None:
        write_outcome(run, FAILED, sentence, progress.step, progress.eval_loss)

    try:
        with report, Watchdog(run, config.watchdog.seconds, built.grid, recorder, stalled) as dog:
            Loop(built, run, report, progress, dog).train()
        code = DONE
    except StopRequested as stop:
        code = stop.code
        raise
    finally:
        trackers.finish(code)
        if code != FAILED:
            dist.barrier()  # torchrun ends all as soon as one leaves, rank 0's tracker, too
    return (
        f"Trained {counted(progress.step, 'step')}; held-out loss {progress.eval_loss:.4f}. "
        f"Everything is in {run}"
    )


def _check_data(run: Path, built: TrainingRun) -> None:
    """Raises `DataError` if the data is not what the launcher has checked."""
    path, found = run / "data.json", built.task.data_hash
    known = json.loads(path.read_text("utf-8"))["index"] if path.is_file() else found
    if known != found:
        raise DataError(
            f"{built.config.data.shards} was written again while {run} was starting (its index was "
            f"{known[:12]}, and is {found[:12]}); start the run again"
        )


def _environment(run: Path) -> dict[str, Any]:
    """What the launcher has recorded of this start; empty where ranks were started without one."""
    rows = read_rows(run / STARTS)
    return rows[-1] if rows else {}


def _resume(built: TrainingRun, found: Path) -> checkpoint.Manifest:
    manifest = checkpoint.read_manifest(found)
    if manifest.index != built.task.data_hash:
        raise DataError(
            f"{found} was trained on shards of index {manifest.index[:12]}, and "
            f"{built.config.data.shards} now has {built.task.data_hash[:12]}; give back the old "
            f"shards, or start a new run"
        )
    checkpoint.restore(built.engine, found, manifest.step)
    return manifest


def _opening(built: TrainingRun, start: int) -> str:
    degrees, config, train = built.grid.layout, built.config, built.config.train
    begins = f"Resuming at step {start}" if start else "Training"
    if start >= train.steps:
        done = "The one step is" if start == 1 else f"All {start} steps are"
        return f"{done} done; evaluating again (raise train.steps to continue)"
    return (
        f"{begins}: {config.model.parameters():,} parameters, {built.task.summary()}; "
        f"tp {degrees.tp}, pp {degrees.pp}, dp {degrees.dp}, ZeRO-{degrees.zero}, {train.dtype} on "
        f"{train.device}; {built.task.tokens_per_step:,} tokens a step"
    )
