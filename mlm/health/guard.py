"""Steps whose numbers go wrong: which are refused, and how a run recovers.

A step is judged before it changes anything. A refused step is computed again, which is enough where
a computation went wrong once. If it is refused again, the state itself may be damaged: the run goes
back to its last checkpoint and trains on the same batches. If the step is refused there as well,
the cause is its batch, or those before it, and they are skipped for good.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

WINDOW, ENOUGH = 64, 16  # steps that a median is of; with fewer than these there is none
NEAR = 16  # steps after a skipped one in which a refusal has the same cause
MAD = 1.4826  # standard deviation over median absolute deviation, of a normal distribution
# The least deviation of a logarithm. 10 are twice the loss and 1,100 times the gradient norm, which
# leaps by a factor of 40 early in training (measured): clipping makes that harmless.
LOSS_NOISE, NORM_NOISE = 0.07, 0.7


class Median:
    """The running median of a positive number, and a test for values far above it."""

    def __init__(self, name: str, noise: float) -> None:
        self.name, self.noise = name, noise
        self.logs: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self.logs.append(_log(value))

    def fault(self, value: float, spike: float) -> str | None:
        """What is wrong with a value: not finite, or more than `spike` deviations above the median
        (0: not tested). Deviations are robust, and those of logarithms."""
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
    """What to do about a step that was refused again: with `back`, go back to the last checkpoint
    from before the steps `skip`; skip those. Neither: nothing helps."""

    back: bool = False
    skip: range = range(0)


class Guard:
    """Judges the steps of a run, with the same verdicts on every rank. Steps count from 0.

    spike: robust deviations above the running median at which a step is refused; 0: never
    rollbacks: the most from one checkpoint to the next
    skipped: steps that earlier starts of the run have skipped
    """

    def __init__(self, spike: float, rollbacks: int, skipped: Iterable[int] = ()) -> None:
        self.spike, self.limit = spike, rollbacks
        self.loss = Median("loss", LOSS_NOISE)
        self.norm = Median("gradient norm", NORM_NOISE)
        self.skipped = set(skipped)
        self._last = -1  # the last step in the medians
        self.rollbacks = 0  # since there was a new checkpoint
        self._tried: set[int] = set()  # steps that caused a rollback

    def fault(self, loss: float, norm: float) -> str | None:
        """Why a step with these numbers must not be applied; None: it may be."""
        return self.loss.fault(loss, self.spike) or self.norm.fault(norm, self.spike)

    def judge(self, loss: float, norm: float) -> bool:
        """Whether to apply a step."""
        return self.fault(loss, norm) is None

    def applied(self, step: int, loss: float, norm: float) -> None:
        """Records an applied step. Steps repeated after a rollback add nothing, so that a refused
        step is compared with the same median as before."""
        if step > self._last:
            self._last = step
            self.loss.add(loss)
            self.norm.add(norm)

    def remedy(self, step: int) -> Remedy:
        """What to do about a step that was refused again."""
        near = [each for each in self.skipped if step - NEAR <= each < step]
        if step in self._tried and not near:
            return Remedy(skip=range(step, step + 1))
        if self.rollbacks >= self.limit:
            return Remedy()
        self.rollbacks += 1
        self._tried.add(step)
        # Skipping one did not help: those before it have led here, so skip more and more of them.
        first = max(0, step - 2 * len(near)) if near else step + 1
        return Remedy(back=True, skip=range(first, step + 1))

    def saved(self, done: int) -> None:
        """Records a checkpoint of `done` steps: faults in them are past."""
        if all(step < done for step in self._tried):
            self.rollbacks = 0
            self._tried.clear()


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))
