"""Values computed in a background thread, ahead of their use."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetcher(Generic[Made]):
    """`make(start)`, `make(start + 1)`, ... in order, up to `depth` of them ahead of `next`.

    One background thread computes them. A context: leaving it calls `close`.
    """

    def __init__(self, make: Callable[[int], Made], start: int, depth: int = 2) -> None:
        self._make = make
        self._number = start
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: deque[Future[Made]] = deque()
        for _ in range(depth):
            self._request()

    def next(self) -> Made:
        """The next value, once it is there; raises what `make` raised, in every further call."""
        made = self._ahead[0].result()
        self._ahead.popleft()
        self._request()
        return made

    def close(self) -> None:
        """Ends the thread after the value it is computing; the others are dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher[Made]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self) -> None:
        self._ahead.append(self._thread.submit(self._make, self._number))
        self._number += 1
