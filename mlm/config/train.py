"""All settings of a pretraining run."""

from dataclasses import dataclass

from mlm.config.data import DataConfig
from mlm.config.running import (
    ChecksConfig,
    GuardConfig,
    LaunchConfig,
    ParallelConfig,
    RunConfig,
    TrackerConfig,
    WatchdogConfig,
)
from mlm.config.training import (
    CheckpointConfig,
    EvalConfig,
    OptimConfig,
    ScheduleConfig,
    TaskConfig,
    TrainSection,
)
from mlm.model.config import ModelConfig
from mlm.setting import STRICT, section, setting


@dataclass(frozen=True)
class TrainConfig:
    """`mlm train`: pretrains a masked language model."""

    __pydantic_config__ = STRICT

    seed: int = setting(1, "of initial weights, order, masks and dropout")
    weights: str | None = setting(
        None, "a trained model to begin with; null: initial weights", min_length=1
    )
    plugins: tuple[str, ...] = setting(
        (), "modules to import first, which add to tables: [my_package.my_module]", resume=True
    )
    run: RunConfig = section(RunConfig, resume=True)
    task: TaskConfig = section(TaskConfig)
    model: ModelConfig = section(ModelConfig)
    parallel: ParallelConfig = section(ParallelConfig, resume=True)
    data: DataConfig = section(DataConfig)
    train: TrainSection = section(TrainSection)
    optim: OptimConfig = section(OptimConfig)
    schedule: ScheduleConfig = section(ScheduleConfig)
    eval: EvalConfig = section(EvalConfig, resume=True)
    checkpoint: CheckpointConfig = section(CheckpointConfig, resume=True)
    watchdog: WatchdogConfig = section(WatchdogConfig, resume=True)
    checks: ChecksConfig = section(ChecksConfig, resume=True)
    guard: GuardConfig = section(GuardConfig, resume=True)
    tracker: TrackerConfig = section(TrackerConfig, resume=True)
    launch: LaunchConfig = section(LaunchConfig, resume=True)
