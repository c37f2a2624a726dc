"""Why a rank was killed: memory that ran out, most of the time, of which no rank can report."""

import re
from dataclasses import replace
from pathlib import Path

from launch.launcher import Outcome
from launch.machine import kills, memory_limit
from mlm.errors import FAILED

# torchrun's page about the ranks that ended, of which the first to fail is named at the end.
ENDED = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\n *exitcode +: (-?\d+) ")
FIRST = "Root Cause (first observed failure)"
BY_TORCHRUN = "forcefully exiting via"  # ranks that do not end while it ends all of them
REMEDY = (
    "lower train.micro_batch_size, add train.recompute=true, or divide the state over more ranks "
    "or machines, and start the run again, which resumes it"
)


def explained(outcome: Outcome, log: Path, start: int, kills_before: int) -> Outcome:
    """The outcome of a run that failed; where a rank was killed by SIGKILL, that.

    log: of torchrun, from byte `start` on; kills_before: `machine.kills()` before the run
    """
    if outcome.code != FAILED:
        return outcome
    ranks = _killed(log, start)
    if not ranks:
        return outcome
    named = f"rank {ranks[0]} was" if len(ranks) == 1 else f"ranks {', '.join(ranks)} were"
    limit = memory_limit()
    size = "" if limit is None else f" ({limit / 1e9:.1f} GB here)"
    if kills() > kills_before:
        reason = f"the system ran out of memory{size}"
    else:
        reason = f"unless somebody did that, the system had run out of memory{size}"
    return replace(outcome, sentence=f"{named} killed by SIGKILL: {reason}; {REMEDY}")


def _killed(log: Path, start: int) -> list[str]:
    """The ranks that SIGKILL ended; those that torchrun killed do not count."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            page = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    if BY_TORCHRUN in page:
        page = page.partition(FIRST)[2]
    return sorted({rank for rank, code in ENDED.findall(page) if code == "-9"}, key=int)
