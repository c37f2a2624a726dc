"""The table of launchers: `launch=NAME` chooses one. One from outside is one more entry."""

from collections.abc import Callable

from launch.launcher import Launcher
from launch.launchers.local import Local
from launch.launchers.slurm import Slurm

LAUNCHERS: dict[str, Callable[[], Launcher]] = {"local": Local, "slurm": Slurm}
