"""The memory that this machine gives to a run, and how often it has run out."""

from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")


def memory_limit(system: Path = SYSTEM) -> int | None:
    """Bytes that processes started from here can have together: the machine's memory, or less by a
    limit of a control group (a container, a job of a scheduler). None where that is unknown.

    Not what is free at this moment: other processes end, and cached files give way. Swap does not
    count, since a step uses all of the state. system: the root of the file system
    """
    limits = [_number(path.read_text()) for path in _of_groups(system, "memory.max")]
    limits += [_number(path.read_text()) for path in _of_groups(system, "memory.limit_in_bytes")]
    limits.append(_field(system / "proc/meminfo", "MemTotal:", 1024))
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def kills(system: Path = SYSTEM) -> int:
    """Processes that the system has killed so far because memory ran out: on the machine, or where
    that is not counted in the control groups of this process."""
    groups = [*_of_groups(system, "memory.events"), *_of_groups(system, "memory.oom_control")]
    counted = [_field(path, "oom_kill") for path in [system / "proc/vmstat", *groups]]
    return max((count for count in counted if count is not None), default=0)


def _of_groups(system: Path, name: str) -> Iterator[Path]:
    """The files `name` of this process's control groups and of all above them; both versions."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = system / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            roots = [mounts, mounts / "unified"]
        elif "memory" in controllers.split(","):
            roots = [mounts / "memory"]
        else:
            continue
        group = Path(path.lstrip("/"))
        for root in roots:
            yield from (
                f for each in (group, *group.parents) if (f := root / each / name).is_file()
            )


def _field(path: Path, name: str, unit: int = 1) -> int | None:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(row[1]) * unit for row in rows if row[:1] == [name]), None)


def _number(text: str) -> int | None:
    return None if text.strip() == "max" else int(text)
