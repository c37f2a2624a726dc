"""AdamW with decay groups chosen by name, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from mlm.config import OptimConfig, ScheduleConfig


def decays(name: str) -> bool:
    """Whether weight decay applies to a parameter: to all but biases and layer norms.

    By name and never by `ndim`: ZeRO-3 keeps every parameter as one dimension.
    """
    leaf = name.rsplit(".", 2)[-2:]
    return leaf[-1] != "bias" and "norm" not in leaf[0].lower()


def make_adamw(
    named: Sequence[tuple[str, nn.Parameter]], config: OptimConfig, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over named parameters, in two groups.

    fused: one kernel, which on a CPU rounds the last few numbers of a tensor otherwise than the
    rest; without it, a number's new value does not depend on its place.
    """
    groups = [
        {"params": [p for n, p in named if decays(n)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 0, of `steps`.

    It rises linearly to `peak` over the warm-up, which counts from 1, so that the first step
    trains; then it follows the schedule down to `end_lr` at the last step. `wsd` stays at the
    peak until its last `decay_steps`, over which it falls linearly.
    """
    warmup = warmup_steps(steps, schedule)
    if step < warmup:
        return peak * (step + 1) / warmup
    end, power = schedule.end_lr, schedule.power
    if schedule.kind == "wsd":
        decay = schedule.decay_steps if schedule.decay_steps is not None else round(0.2 * steps)
        left = min(1.0, (steps - step) / (decay + 1))
        return end + (peak - end) * left
    left = (steps - step) / (steps - warmup + 1)  # falls from just below 1 to just above 0
    if schedule.kind == "cosine":
        return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    return end + (peak - end) * left ** (power if schedule.kind == "polynomial" else 1.0)


def warmup_steps(steps: int, schedule: ScheduleConfig) -> int:
    """Steps of warm-up; 6 % of the run where none are given, as RoBERTa-like runs have it."""
    given = schedule.warmup_steps
    return min(steps, round(0.06 * steps) if given is None else given)
