"""Every setting of every command, typed and checked.

A setting stands in one place: its type, default, bounds, line of help, and whether a run can resume
with another value. YAML files in `conf/` and overrides on the command line hold differences from
the defaults here.
"""

from mlm.config.commands import (
    AuditConfig,
    CheckpointsConfig,
    ExportConfig,
    FillConfig,
    ImportConfig,
    ShardsConfig,
    TokenizerConfig,
)
from mlm.config.data import DataConfig
from mlm.config.loading import as_dict, defaults, load, value_of
from mlm.config.rules import layout
from mlm.config.running import (
    ChecksConfig,
    GuardConfig,
    LaunchConfig,
    ParallelConfig,
    RunConfig,
    TrackerConfig,
    WatchdogConfig,
)
from mlm.config.train import TrainConfig
from mlm.config.training import (
    CheckpointConfig,
    EvalConfig,
    OptimConfig,
    ScheduleConfig,
    TaskConfig,
    TrainSection,
)

__all__ = [
    "AuditConfig",
    "CheckpointConfig",
    "CheckpointsConfig",
    "ChecksConfig",
    "DataConfig",
    "EvalConfig",
    "ExportConfig",
    "FillConfig",
    "GuardConfig",
    "ImportConfig",
    "LaunchConfig",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "ScheduleConfig",
    "ShardsConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrackerConfig",
    "TrainConfig",
    "TrainSection",
    "WatchdogConfig",
    "as_dict",
    "defaults",
    "layout",
    "load",
    "value_of",
]
