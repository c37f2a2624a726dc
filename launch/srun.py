"""Ranks that srun has started, one task for each: Slurm's variables as those of torchrun."""

import os
import re
from collections.abc import Mapping

PORTS, PORT_0 = 10_000, 20_000


def ranks_of_srun(given: Mapping[str, str]) -> dict[str, str]:
    """The variables of torchrun for this task of srun; none where it is no task of several, or has
    them already.

    given: the environment. Only srun sets SLURM_STEP_NUM_TASKS: in a batch script, whose
    SLURM_NTASKS may be large as well, a command is a launcher.
    """
    tasks = int(given.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in given or tasks == 1 or "SLURM_PROCID" not in given:
        return {}
    node = int(given.get("SLURM_NODEID", "0"))
    found = {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(_tasks_of(given.get("SLURM_STEP_TASKS_PER_NODE", "1"), node)),
    }
    if "MASTER_ADDR" not in given:
        found["MASTER_ADDR"] = first_host(given["SLURM_STEP_NODELIST"])
    if "MASTER_PORT" not in given:
        found["MASTER_PORT"] = str(PORT_0 + int(given["SLURM_JOB_ID"]) % PORTS)
    return found


def adopt() -> None:
    """Makes this process a rank where srun has started it as one of several tasks."""
    os.environ.update(ranks_of_srun(os.environ))


def first_host(nodes: str) -> str:
    """The first host of Slurm's `node[03-12,20],login1`: `node03`."""
    first = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    assert first is not None, "everything in it is optional"
    return "".join(part or "" for part in first.groups())


def _tasks_of(text: str, node: int) -> int:
    """The tasks of a node, of Slurm's `4(x2),3`."""
    counts = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(times or 1))
    ]
    return counts[node]
