"""A tracker in a thread of its own: whatever it does, training neither waits for it nor fails."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig
from mlm.errors import REQUEUE
from mlm.tracking.tracker import Tracker

SECONDS_TO_FINISH, SECONDS_TO_STOP = 60.0, 10.0  # of a scheduler's grace, the latter


class Feed:
    """Gives a tracker its rows, in order, from a queue.

    name: of the table; say: shows a line to people
    """

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.name, self.tracker, self.say = name, tracker, say
        tracker.say = say
        self._failed = False
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._over = threading.Event()

    def start(self, run: Path, config: TrainConfig, run_id: str) -> None:
        self._thread.start()
        self._queue.put(lambda: self.tracker.start(run, config, run_id))

    def log(self, values: dict[str, Any]) -> None:
        self._queue.put(lambda: self.tracker.log(values))

    def finish(self, code: int) -> None:
        """Waits until the tracker has ended, but not for ever: a service may be out of reach."""
        self._queue.put(lambda: self.tracker.finish(code))
        self._queue.put(self._over.set)
        limit = SECONDS_TO_STOP if code == REQUEUE else SECONDS_TO_FINISH
        if not self._over.wait(limit) and not self._failed:
            self.say(
                f"{self.name} has not taken everything after {limit:.0f} s, and is left behind"
                f"{self.tracker.remedy()}"
            )

    def _work(self) -> None:
        while not self._over.is_set():
            task = self._queue.get()
            if self._failed and task != self._over.set:
                continue
            try:
                task()
            except (Exception, SystemExit) as error:  # the latter would end this thread unseen
                self._failed = True
                reason = str(error).strip().splitlines() or [type(error).__name__]
                self.say(
                    f"{self.name} has failed ({reason[0]}); training goes on without it, and "
                    f"metrics.jsonl has all of it{self.tracker.remedy()}"
                )
