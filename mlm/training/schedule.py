"""The learning rate as a function of the step: warm-up, then a schedule from a table."""

import math
from collections.abc import Callable

from mlm.config import ScheduleConfig
from mlm.plugins import entry

Schedule = Callable[[int, int, int, float, ScheduleConfig], float]


def polynomial(step: int, steps: int, warmup: int, peak: float, settings: ScheduleConfig) -> float:
    """Falls to `end_lr` as the power `power` of what is left of the run."""
    return settings.end_lr + (peak - settings.end_lr) * _left(step, steps, warmup) ** settings.power


def linear(step: int, steps: int, warmup: int, peak: float, settings: ScheduleConfig) -> float:
    """Falls to `end_lr` in a straight line."""
    return settings.end_lr + (peak - settings.end_lr) * _left(step, steps, warmup)


def cosine(step: int, steps: int, warmup: int, peak: float, settings: ScheduleConfig) -> float:
    """Falls to `end_lr` along half a cosine (Loshchilov & Hutter 2017, without restarts)."""
    done = 1.0 - _left(step, steps, warmup)
    return settings.end_lr + (peak - settings.end_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def wsd(step: int, steps: int, warmup: int, peak: float, settings: ScheduleConfig) -> float:
    """Warm-up, stable, decay: stays at the peak until the last `decay_steps`, over which it falls
    linearly to `end_lr`."""
    given = settings.decay_steps
    decay = round(0.2 * steps) if given is None else given
    left = min(1.0, (steps - step) / (decay + 1))
    return settings.end_lr + (peak - settings.end_lr) * left


# Each gives the rate of `step`, counted from 0, of `steps`; it is asked from step `warmup` on.
# A schedule from outside the package is one more entry.
SCHEDULES: dict[str, Schedule] = {
    "polynomial": polynomial,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
}


def learning_rate(step: int, steps: int, peak: float, settings: ScheduleConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0, of a run of `steps`.

    It rises linearly to `peak` over the warm-up, which counts from 1, so that the first step
    trains; then it follows the schedule that `settings.kind` names.
    """
    steps, warmup = settings.steps or steps, warmup_steps(steps, settings)
    if step < warmup:
        return peak * (step + 1) / warmup
    schedule = entry(SCHEDULES, "schedule.kind", settings.kind)
    return schedule(step, steps, warmup, peak, settings)


def warmup_steps(steps: int, settings: ScheduleConfig) -> int:
    """Steps of warm-up; 6 % of the schedule where none are given, as RoBERTa-like runs have it."""
    given = settings.warmup_steps
    return round(0.06 * (settings.steps or steps)) if given is None else given


def _left(step: int, steps: int, warmup: int) -> float:
    """The part of the run that is left: falls from just below 1 to just above 0."""
    return (steps - step) / (steps - warmup + 1)
