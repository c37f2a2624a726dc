"""The memory of a machine, from files as the kernel writes them."""

from pathlib import Path

import psutil
import pytest

from launch.machine import kills, memory_limit

UNLIMITED = "9223372036854771712\n"  # of version 1


def system(folder: Path, cgroup: str, **files: str) -> Path:
    """A root with 8 GB of memory, in which a file is at its path with `__` for `/`."""
    written = {"proc/meminfo": "MemTotal:  8000000 kB\nMemFree: 1 kB\n", "proc/self/cgroup": cgroup}
    written["proc/vmstat"] = "nr_free_pages 1\noom_kill 3\n"
    written |= {f"sys/fs/cgroup/{name.replace('__', '/')}": text for name, text in files.items()}
    for name, text in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_memory_limit_of_this_machine_is_at_most_its_memory():
    limit = memory_limit()
    assert limit is not None
    assert 0 < limit <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/\n", {}, 8_192_000_000),
        ("0::/\n", {"memory.max": "1000\n"}, 1000),  # a container with a view of its own
        ("0::/job/step\n", {"job__memory.max": "2000\n", "job__step__memory.max": "max\n"}, 2000),
        ("0::/job\n", {"job__memory.max": "99000000000\n"}, 8_192_000_000),
        ("0::/job\n", {"other__memory.max": "1000\n"}, 8_192_000_000),
        ("4:memory:/a/b\n0::/\n", {"memory__a__memory.limit_in_bytes": "3000\n"}, 3000),
        ("4:memory:/a\n", {"memory__a__memory.limit_in_bytes": UNLIMITED}, 8_192_000_000),
        ("4:memory:/of/the/host\n", {"memory__memory.limit_in_bytes": "5000\n"}, 5000),
        ("3:cpu,memory:/a\n", {"memory__a__memory.limit_in_bytes": "6000\n"}, 6000),
    ],
)
def test_memory_limit_is_the_least_of_machine_and_control_groups(cgroup, files, limit, tmp_path):
    assert memory_limit(system(tmp_path, cgroup, **files)) == limit


def test_memory_limit_is_unknown_without_the_files(tmp_path):
    assert memory_limit(tmp_path) is None
    assert kills(tmp_path) == 0


def test_kills_count_those_of_the_machine_and_of_control_groups(tmp_path):
    assert kills(system(tmp_path, "0::/\n")) == 3
    events = "low 0\noom 9\noom_kill 7\n"
    assert kills(system(tmp_path, "0::/job\n", **{"job__memory.events": events})) == 7
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 8\n"
    files = {"memory__a__memory.oom_control": control}
    assert kills(system(tmp_path, "4:memory:/a\n", **files)) == 8
