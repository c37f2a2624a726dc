"""The watchdog of training: it ends a run in which nothing moves, and reports why."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from mlm.errors import FAILED
from mlm.health import heartbeat
from mlm.health.heartbeat import Beat, RankState
from parallel.groups import ProcessGrid
from parallel.recorder import Recorder, describe

STDERR = 2  # the log of this rank


class Watchdog:
    """Watches the loop of this rank and, when it stalls, those of the others.

    A context around the loop, which calls `enter` at each phase; all ranks enter the context
    together. Phases and collectives count as moves. If no rank moves for `seconds`, each live rank
    writes its stacks and last collectives to its log, `fail` gets a sentence that names the
    culprit, and the process ends with code 1. `seconds` must exceed the longest time between two
    moves: a step, a block of an evaluation, a save. 0: nothing is watched.
    """

    def __init__(
        self,
        run: Path,
        seconds: float,
        grid: ProcessGrid,
        recorder: Recorder,
        fail: Callable[[str], None],
    ) -> None:
        self.run, self.seconds, self.grid = run, seconds, grid
        self.recorder, self.fail = recorder, fail
        self.phase, self.phases_begun = "start", 0
        self.pause = min(seconds / 20, 10.0)  # between two beats
        self.silence = seconds / 2  # without a beat, of a process that does not run any more
        self.path = heartbeat.path_of(run, grid.rank)
        self.host, self.process = os.uname().nodename[:64], os.getpid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._number, self._dumped = 0, False
        self._moved, self._still = (0, 0), 0.0
        self._others: dict[int, RankState] = {}
        self._unread = 0.0  # seconds since the others were looked at

    def enter(self, phase: str) -> None:
        """The main thread begins a phase, or its next part."""
        self.phase, self.phases_begun = phase, self.phases_begun + 1

    def moved(self) -> None:
        """Counts a move of what the main thread may wait for: a save in the background."""
        self.phases_begun += 1

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._beat()
            if self.grid.layout.world_size > 1:
                dist.barrier()  # one that starts late (rank 0 has a tracker) has not stalled
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.enter(heartbeat.ENDED)
        self._over.set()
        if self.seconds:
            self._thread.join()
            self._beat()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self.pause):
            now = time.monotonic()
            # A job that was suspended as a whole has not stalled: time asleep does not count.
            self._tick(min(now - before, 3 * self.pause))
            before = now

    def _tick(self, passed: float) -> None:
        moved = (self.phases_begun, self.recorder.calls)
        if moved != self._moved:
            self._moved, self._still = moved, 0.0
            self._others = {}
        else:
            self._still += passed
        self._beat()
        if self._still > self.seconds / 4:  # while the run moves, no files are read
            self._read_others(passed)
            others = self._live_beats()
            called = any(beat.dumped for beat in others)
            limit = self.seconds / 2 if called else self.seconds
            if self._still > limit and all(beat.idle_seconds > self.seconds / 2 for beat in others):
                self._end()

    def _beat(self) -> None:
        self._number += 1
        call = self.recorder.current()
        collective = "" if call is None else call.name
        self._last_beat = Beat(
            self._number,
            *self._moved,
            self.phase,
            collective,
            round(self._still, 1),
            self._dumped,
            self.host,
            self.process,
        )
        with suppress(OSError):  # the loop reports a full disk
            heartbeat.write(self.path, self._last_beat)

    def _read_others(self, passed: float) -> None:
        """Reads the other ranks' heartbeats, a few times in `seconds`: a cluster has many."""
        self._unread += passed
        if self._others and self._unread < self.seconds / 20:
            return
        layout = self.grid.layout
        for rank in range(layout.world_size):
            if rank == self.grid.rank:
                continue
            last, beat = self._others.get(rank), heartbeat.read(heartbeat.path_of(self.run, rank))
            silent_seconds = 0.0
            if last is not None and (beat is None or beat == last.beat):
                silent_seconds, beat = last.silent_seconds + self._unread, last.beat
            self._others[rank] = RankState(rank, layout.coordinates(rank)[1], silent_seconds, beat)
        self._unread = 0.0

    def _live_beats(self) -> list[Beat]:
        """The heartbeats of the other ranks whose processes run."""
        others = self._others.values()
        return [one.beat for one in others if one.beat and one.silent_seconds <= self.silence]

    def _end(self) -> None:
        """Reports the stall, waits until the others have reported it, and ends the process."""
        me = RankState(self.grid.rank, self.grid.pp_rank, 0.0, self._last_beat)
        seen = sorted([me, *self._others.values()], key=lambda one: one.rank)
        rank, why = heartbeat.culprit(seen, self.silence)
        sentence = (
            f"rank {rank} stalled ({why}): nothing has moved for {self._still:.0f} s, and "
            f"watchdog.seconds={self.seconds:g}; stacks and last collectives of the ranks are in "
            f"{self.run / 'logs'}; start the run again to resume from its last checkpoint"
        )
        self._dump(sentence)
        self._dumped = True
        self._beat()
        try:
            self.fail(sentence)
        except OSError:
            _say(f"mlm: {sentence}\n")
        # The launcher kills all ranks as soon as one ends, and what they have not written is lost.
        grace = time.monotonic() + min(max(self.seconds / 4, 5.0), 60.0)
        while time.monotonic() < grace:
            time.sleep(self.pause)
            self._beat()
            self._read_others(self.pause)
            if all(beat.dumped for beat in self._live_beats()):
                break
        os._exit(FAILED)

    def _dump(self, sentence: str) -> None:
        _say(f"watchdog: {sentence}\n\nStacks of rank {self.grid.rank}, in phase {self.phase}:\n")
        faulthandler.dump_traceback(STDERR, all_threads=True)
        _say(f"\nIts last collectives:\n{describe(self.recorder.last(), time.perf_counter())}\n")


def _say(text: str) -> None:
    """Not through sys.stderr, which the thread that has stalled may hold."""
    with suppress(OSError):
        os.write(STDERR, text.encode())
