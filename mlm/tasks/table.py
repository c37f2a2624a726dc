"""The tasks by name. A task from outside the package is one more entry."""

from collections.abc import Callable

from mlm.config import TrainConfig
from mlm.tasks.pretraining.task import Pretraining
from mlm.tasks.task import Task

TASKS: dict[str, Callable[[TrainConfig], Task]] = {"pretraining": Pretraining}
