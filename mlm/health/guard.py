"""Steps whose numbers go wrong: what is refused, and what a run does about it.

A step is judged before it changes anything. One that is refused is made again, which is enough
where a computation went wrong once. Where it is refused again, the state itself may have gone
wrong: the run goes back to its last checkpoint and trains on the same batches. What is refused
there, too, comes from its batch, or from those before it, and these are left out for good.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

WINDOW, ENOUGH = 64, 16  # steps that a median is of; with fewer than these there is none
NEAR = 16  # steps after one that is left out in which trouble is the same trouble
MAD = 1.4826  # of a normal distribution, a standard deviation over its median absolute deviation
# The least deviation of a logarithm: 10 are twice the loss, and 1,100 times the gradient norm, as
# norms of young models leap by 40 (measured), and clipping makes that harmless.
LOSS_NOISE, NORM_NOISE = 0.07, 0.7


class Median:
    """The running median of a positive number, and what is far above it."""

    def __init__(self, name: str, noise: float) -> None:
        self.name, self.noise = name, noise
        self.logs: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self.logs.append(_log(value))

    def fault(self, value: float, spike: float) -> str | None:
        """What is wrong with a value: not finite, or `spike` deviations above the median (0: of
        no interest). Deviations are those of logarithms, and robust."""
        if not math.isfinite(value):
            return f"{self.name} {value} is not finite"
        if not spike or len(self.logs) < ENOUGH:
            return None
        middle = median(self.logs)
        deviation = MAD * median(abs(each - middle) for each in self.logs)
        limit = middle + spike * max(deviation, self.noise)
        if _log(value) <= limit:
            return None
        return (
            f"{self.name} {value:.4g} is far above {math.exp(middle):.4g}, the median of the last "
            f"{len(self.logs)} steps (guard.spike={spike:g} allows {math.exp(limit):.4g})"
        )


@dataclass(frozen=True)
class Remedy:
    """What to do about a step that was refused again: go back, where `back`, to the last checkpoint
    that has none of `leave_out`, and leave those out. Neither: nothing helps."""

    back: bool = False
    leave_out: range = range(0)


class Guard:
    """Judges the steps of a run, on every rank alike. Steps are counted from 0.

    spike: robust deviations above the running median at which a step is refused; 0: never
    rollbacks: from one checkpoint to the next, after which nothing helps
    left_out: steps that were left out by earlier starts of the run
    """

    def __init__(self, spike: float, rollbacks: int, left_out: Iterable[int] = ()) -> None:
        self.spike, self.limit = spike, rollbacks
        self.loss = Median("loss", LOSS_NOISE)
        self.norm = Median("gradient norm", NORM_NOISE)
        self.left_out = set(left_out)
        self._last = -1  # the last step that the medians know of
        self.rollbacks = 0  # since there was a new checkpoint
        self._tried: set[int] = set()  # steps that it was gone back for

    def fault(self, loss: float, norm: float) -> str | None:
        """Why a step with these numbers is not to be applied; None: it is."""
        return self.loss.fault(loss, self.spike) or self.norm.fault(norm, self.spike)

    def judge(self, loss: float, norm: float) -> bool:
        """Whether a step is to be applied."""
        return self.fault(loss, norm) is None

    def applied(self, step: int, loss: float, norm: float) -> None:
        """A step was applied. Those that are made again after going back add nothing, so that what
        was refused is measured by what it was measured by before."""
        if step > self._last:
            self._last = step
            self.loss.add(loss)
            self.norm.add(norm)

    def remedy(self, step: int) -> Remedy:
        """What to do about a step that was refused again."""
        near = [each for each in self.left_out if step - NEAR <= each < step]
        if step in self._tried and not near:
            return Remedy(leave_out=range(step, step + 1))
        if self.rollbacks >= self.limit:
            return Remedy()
        self.rollbacks += 1
        self._tried.add(step)
        # Where leaving out one did not help, those before it have led here: ever more of them.
        first = max(0, step - 2 * len(near)) if near else step + 1
        return Remedy(back=True, leave_out=range(first, step + 1))

    def saved(self, done: int) -> None:
        """There is a checkpoint of `done` steps: what was wrong with them is past."""
        if all(step < done for step in self._tried):
            self.rollbacks = 0
            self._tried.clear()


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))
