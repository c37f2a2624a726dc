"""The settings of how a model is trained: step, optimizer, schedule, evaluation, checkpoints."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval

from mlm.setting import setting

Beta = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True)
class TaskConfig:
    kind: str = setting("pretraining", "what is trained, from the table TASKS")
    options: dict[str, Any] = setting(dict, "settings of a task from a plugin: {margin: 0.2}")


@dataclass(frozen=True)
class TrainSection:
    steps: int = setting(10000, "optimizer steps of the run", ge=1, resume=True)
    global_batch_size: int = setting(256, "sequences of a step, over all processes", ge=1)
    micro_batch_size: int = setting(
        8, "sequences that a process computes at a time", ge=1, resume=True
    )
    dtype: Literal["fp32", "bf16"] = setting(
        "bf16",
        "of weights and activations; master weights, gradient sums, moments: fp32",
        resume=True,
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto: cuda where there is a GPU", resume=True
    )
    recompute: bool = setting(
        False, "recompute activations in the backward pass, to save memory", resume=True
    )
    attention: str = setting(
        "auto",
        "the attention kernel, from the table KERNELS; auto: fused where it can be",
        resume=True,
    )
    log_every: int = setting(10, "steps from one row of metrics to the next", ge=1, resume=True)


@dataclass(frozen=True)
class OptimConfig:
    lr: float = setting(5e-4, "peak learning rate", ge=0)
    betas: tuple[Beta, Beta] = setting((0.9, 0.98), "AdamW betas")
    # What is 0 in fp32 divides 0 by 0 for a row that no token of a step uses.
    eps: float = setting(1e-6, "AdamW epsilon", ge=1e-37)
    weight_decay: float = setting(0.01, "AdamW weight decay, not of biases and layer norms", ge=0)
    clip: float = setting(1.0, "gradients are scaled down to this norm; 0: no clipping", ge=0)


@dataclass(frozen=True)
class ScheduleConfig:
    kind: str = setting("polynomial", "the learning-rate schedule, from the table SCHEDULES")
    warmup_steps: int | None = setting(
        None, "steps over which the rate rises; null: 6 % of the schedule's steps", ge=0
    )
    steps: int | None = setting(
        None, "of the schedule, of which a shorter run has the beginning; null: train.steps", ge=1
    )
    end_lr: float = setting(0.0, "learning rate that is reached after the last step", ge=0)
    power: float = setting(1.0, "of the polynomial", ge=0)
    decay_steps: int | None = setting(
        None, "steps of the last phase of wsd; null: 20 % of the schedule's steps", ge=0
    )


@dataclass(frozen=True)
class EvalConfig:
    every: int = setting(500, "steps between evaluations; 0: only at the end", ge=0)
    corpus: str | None = setting(
        None,
        "text to evaluate on: a folder or a YAML file; null: what data.heldout holds out",
        min_length=1,
        resume=True,
    )
    shards: str | None = setting(
        None, "shards whose held-out text is evaluated on", min_length=1, resume=True
    )
    blocks_per_language: int = setting(
        16, "held-out sequences of each language; 0: all of them", ge=0
    )


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = setting(500, "steps between checkpoints; 0: only at the end", ge=0)
    keep: int = setting(2, "the newest checkpoints that stay", ge=1)
    keep_every: int = setting(0, "checkpoints of multiples of these steps stay, too; 0: none", ge=0)
    background: bool = setting(True, "write a copy of the state while training continues")
