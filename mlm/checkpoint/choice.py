"""The checkpoint that a run resumes from: the newest whole one, found by all ranks together."""

import shutil
from pathlib import Path

import torch.distributed as dist

from mlm.checkpoint.folder import (
    DAMAGED,
    FOLDER,
    PARTIAL,
    all_named,
    fault,
    files_of,
    remove,
    step_of,
)
from mlm.errors import DataError


def choose(run: Path, at_most: int | None = None) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, None where there are none, and what is wrong with newer ones.

    at_most: the newest checkpoint of at most this step is taken, or else the oldest later one

    A collective: every rank verifies some of the files. Newer checkpoints are renamed, so that
    they are never used again. Raises `DataError` where there are checkpoints and none is whole.
    """
    first = dist.get_rank() == 0
    if first:
        _clear_partial(run)
    listed: list[list[Path]] = [all_named(run) if first else []]
    dist.broadcast_object_list(listed)
    faults: list[str] = []
    order = listed[0][::-1]
    if at_most is not None:
        later = [folder for folder in listed[0] if step_of(folder) > at_most]
        order = order[len(later) :] + later
    for folder in order:
        wrong = _damage(folder)
        if wrong is None:
            if first:
                _set_aside([each for each in listed[0] if step_of(each) > step_of(folder)])
            dist.barrier()
            return folder, faults
        faults.append(wrong)
    if faults:
        raise DataError(
            f"no checkpoint of {run} is whole: {'; '.join(faults)}; put good copies in their "
            f"place, or start over with run.fresh=true"
        )
    return None, faults


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where it is whole; a collective."""
    rank, world = dist.get_rank(), dist.get_world_size()
    try:
        mine = sorted(files_of(folder).items())[rank::world]
        wrong = fault(folder, mine)
    except DataError as error:
        wrong = str(error).partition(";")[0]
    found: list[str | None] = [None] * world
    dist.all_gather_object(found, wrong)
    return next((each for each in found if each is not None), None)


def _clear_partial(run: Path) -> None:
    """Deletes what interrupted saves have left; on one rank."""
    for path in (run / FOLDER).glob(f"step-*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _set_aside(folders: list[Path]) -> None:
    for folder in folders:
        target = folder.with_name(folder.name + DAMAGED)
        remove(target)
        folder.rename(target)
