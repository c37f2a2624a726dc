"""What each rank reports while it trains, and which one the others wait for.

`heartbeats/rank-00003` of a run folder is a file of fixed size, rewritten in place. Clocks of
different hosts are never compared: a reader measures by its own how long a file stays the same.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "heartbeats"
BYTES = 512
ENDED = "the end"  # the phase of a rank that has left the training loop


@dataclass(frozen=True)
class Beat:
    """A heartbeat.

    number: of the beat; phases_begun, collectives_begun: by the main thread, since its start
    collective: the one that it is in, "" outside of any; idle_seconds: since either last rose
    dumped: whether the stacks are in this rank's log, since a rank has stalled
    """

    number: int
    phases_begun: int
    collectives_begun: int
    phase: str
    collective: str
    idle_seconds: float
    dumped: bool
    host: str
    process: int


@dataclass(frozen=True)
class RankState:
    """What one rank knows about another.

    stage: of the pipeline; silent_seconds: without a new beat; beat: None where none was seen
    """

    rank: int
    stage: int
    silent_seconds: float
    beat: Beat | None


def path_of(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank:05d}"


def write(path: Path, beat: Beat) -> None:
    """Opens and closes the file: other hosts of a network file system see it only then."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(handle, json.dumps(asdict(beat)).encode().ljust(BYTES)[:BYTES], 0)
    finally:
        os.close(handle)


def read(path: Path) -> Beat | None:
    """The beat in a file; None where there is none, or a half-written one."""
    with suppress(OSError, ValueError, TypeError):
        return Beat(**json.loads(path.read_bytes()))
    return None


def culprit(seen: Sequence[RankState], silence: float) -> tuple[int, str]:
    """The rank that the others wait for, and what it is doing.

    seen: all ranks of a run in which nobody moves; silence: seconds without a beat after which a
    process does not run any more. A process that does not run comes first; then a rank outside of
    any collective, since the others wait for it; then the one that lags behind.
    """
    gone = [one for one in seen if one.beat is None or one.silent_seconds > silence]
    if gone:
        first = gone[0]
        others = ", ".join(str(one.rank) for one in gone[1:])
        also = f"; so are ranks {others}" if len(gone) > 2 else f"; so is rank {others}"
        return first.rank, (
            f"{_where(first)}stopped, dead or without its file system"
            f"{_phase(first)}{also if others else ''}"
        )
    issued = {one.stage: 0 for one in seen}
    for one in seen:
        assert one.beat is not None
        issued[one.stage] = max(issued[one.stage], one.beat.collectives_begun)

    def progress(one: RankState) -> tuple[int, int, float]:
        """Stages call different numbers of collectives; ranks of one stage call the same."""
        assert one.beat is not None
        return (
            one.beat.phases_begun,
            one.beat.collectives_begun - issued[one.stage],
            one.beat.idle_seconds,
        )

    free = [one for one in seen if one.beat is not None and not one.beat.collective]
    found = min(free or seen, key=progress)
    assert found.beat is not None
    if free:
        return found.rank, f"{_where(found)}in no collective{_phase(found)}"
    return found.rank, (
        f"{_where(found)}it waits in {found.beat.collective}{_phase(found)}, as all do, and lags "
        f"behind; check the network"
    )


def _where(one: RankState) -> str:
    return "" if one.beat is None else f"process {one.beat.process} on {one.beat.host}, "


def _phase(one: RankState) -> str:
    return "" if one.beat is None else f", in phase {one.beat.phase}"
