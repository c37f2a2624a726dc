"""The settings of how a run is laid out, started, watched and tracked."""

from dataclasses import dataclass
from typing import Literal

from mlm.setting import setting


@dataclass(frozen=True)
class RunConfig:
    name: str | None = setting(
        None, "folder in run.dir; the same name resumes; null: <model>-<time>", min_length=1
    )
    dir: str = setting("runs", "folder of all runs", min_length=1)
    fresh: bool = setting(False, "delete what a run of this name has left, and start over")


@dataclass(frozen=True)
class ParallelConfig:
    tp: int = setting(1, "tensor parallelism: processes that share each layer", ge=1)
    pp: int = setting(1, "pipeline parallelism: stages that share the layers", ge=1)
    dp: int | Literal["auto"] = setting(
        "auto", "data parallelism: copies of the model; auto: as many as GPUs allow, 1 on a CPU"
    )
    zero: Literal[1, 2, 3] = setting(1, "ZeRO stage; 2 and 3 need pp=1")


@dataclass(frozen=True)
class WatchdogConfig:
    seconds: float = setting(
        600.0, "seconds without progress before the run ends and names the rank; 0: never", ge=0
    )


@dataclass(frozen=True)
class ChecksConfig:
    replicas_every: int = setting(
        100, "steps between comparisons of copies of weights, also before saves; 0: never", ge=0
    )


@dataclass(frozen=True)
class GuardConfig:
    spike: float = setting(
        10.0, "deviations above the running median at which a step is refused; 0: never", ge=0
    )
    rollbacks: int = setting(
        4, "most returns to a checkpoint before there is a newer one; then the run ends", ge=0
    )


@dataclass(frozen=True)
class TrackerConfig:
    kind: str | tuple[str, ...] = setting(
        "wandb", "one or several of the table TRACKERS; none: no tracker"
    )
    project: str | None = setting(
        None, "project of the tracker; null: WANDB_PROJECT, or polymlm", min_length=1
    )
    entity: str | None = setting(None, "user or team of the tracker; null: its default")
    group: str | None = setting(None, "group of runs in the tracker; null: the sweep, if any")
    tags: tuple[str, ...] = setting((), "tags of the run in the tracker")

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers to start, in order."""
        kinds = (self.kind,) if isinstance(self.kind, str) else self.kind
        return tuple(kind for kind in kinds if kind != "none")


@dataclass(frozen=True)
class LaunchConfig:
    kind: str = setting("local", "what starts the processes, from the table LAUNCHERS")
    max_restarts: int = setting(
        0,
        "local: starts after failures, from the last checkpoint; not after the same one twice",
        ge=0,
    )
    nodes: int = setting(1, "slurm: nodes of the job", ge=1)
    gpus_per_node: int = setting(0, "slurm: GPUs of each node, with a process for each", ge=0)
    cpus_per_task: int | None = setting(
        None, "slurm: cores of a node's processes together, or of each with ranks=srun", ge=1
    )
    time: str | None = setting(
        None, "slurm: time limit, as 24:00:00 or 2-12:00:00; null: the partition's", min_length=1
    )
    partition: str | None = setting(None, "slurm: partition; null: the default one", min_length=1)
    ranks: Literal["torchrun", "srun"] = setting(
        "torchrun", "slurm: a torchrun on each node, or a task of srun for each process"
    )
    warn_seconds: int = setting(
        300, "slurm: seconds before the time limit at which the run saves and is requeued", ge=1
    )
    max_requeues: int = setting(
        20, "slurm: requeues in a row without a new checkpoint, after which the job ends", ge=0
    )
    sbatch: dict[str, str | int | bool] = setting(
        dict, "slurm: more options of sbatch: {account: me, exclusive: true}"
    )
    srun: tuple[str, ...] = setting((), "slurm: more options of srun: ['--container-image=IMAGE']")
    wrap: str | None = setting(
        None, "slurm: what stands before python: apptainer exec IMAGE", min_length=1
    )
    prologue: tuple[str, ...] = setting((), "slurm: lines of the script before the processes start")
    env: dict[str, str | int] = setting(dict, "slurm: variables of the processes: {NAME: VALUE}")
    interface: str | None = setting(
        None, "slurm: network interface of NCCL and gloo; null: they choose", min_length=1
    )
    check: Literal["warn", "strict", "off"] = setting(
        "warn", "slurm: what to do with a job that sbatch --test-only refuses; strict: stop"
    )
    dry_run: bool = setting(False, "slurm: write the script, and submit nothing")
