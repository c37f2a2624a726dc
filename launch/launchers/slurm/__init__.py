"""`launch=slurm`: a batch script that starts a run, saves before its time is over, comes back."""

from launch.launchers.slurm.launcher import Slurm

__all__ = ["Slurm"]
