"""The mean loss of the steps since the last row of `metrics.jsonl`."""

import math


class Window:
    """Sums the losses of steps, each with its weight, such as its masked tokens."""

    def __init__(self) -> None:
        self.clear()

    def add(self, loss: float, weight: int) -> None:
        """Adds a step. loss: its mean"""
        self._total += loss * weight
        self._weight += weight

    def take(self) -> float:
        """The mean, NaN where there was no step; starts again."""
        mean = self._total / self._weight if self._weight else math.nan
        self.clear()
        return mean

    def clear(self) -> None:
        """Starts again."""
        self._total, self._weight = 0.0, 0
