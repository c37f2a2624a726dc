"""The launcher's signals: ranks that are asked to save, are killed, or lose their parent."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from launch.launchers import local, processes
from mlm.health.stopping import SIGNALS
from tests.places import ROOT

# Ranks that work until they are asked to stop; argument 2: what they do then.
WORKING = """
import json, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         start_new_session=True)
(folder / "working").write_text(str(inner.pid))
for _ in range(600):
    time.sleep(0.05)
    if (folder / "stop").exists() and sys.argv[2] == "stops":
        inner.kill()
        (folder / "outcome.json").write_text(json.dumps({"code": 75, "sentence": "saved"}))
        sys.exit(1)
"""

# What torchrun is while it waits for a rank that is stopped.
# Argument 2: whether the run has failed.
STOPPED = """
import json, os, pathlib, signal, subprocess, sys
folder = pathlib.Path(sys.argv[1])
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
os.kill(inner.pid, signal.SIGSTOP)
if sys.argv[2] == "fails":
    (folder / "outcome.json").write_text(json.dumps({"code": 1, "sentence": "rank 0 stalled"}))
(folder / "working").write_text(str(inner.pid))
inner.wait()
sys.exit(1)
"""

# The launcher around them, as a process of its own, since it handles its signals.
LAUNCHER = """
import os, sys
from pathlib import Path
from launch.launcher import Killed
from launch.launchers import local
from launch.messages import show_messages
show_messages()
folder = Path(sys.argv[2])
with (folder / "logs" / "launcher.log").open("ab") as log:
    try:
        left = local.run_ranks([sys.executable, *sys.argv[1:]], folder, dict(os.environ), log)
        print(left.code, left.sentence)
    except Killed as killed:
        print(killed.code, killed)
"""


def launched(folder: Path, does: str, script: str = WORKING) -> subprocess.Popen:
    (folder / "logs").mkdir()
    (folder / "ranks.py").write_text(script)
    command = [sys.executable, "-c", LAUNCHER, str(folder / "ranks.py"), str(folder), does]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (folder / "working").exists() and (folder / "working").read_text())
    return process


def wait_for(holds, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def dead(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", SIGNALS)
def test_stop_on_a_signal_lets_the_ranks_save(number, tmp_path):
    process = launched(tmp_path, "stops")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out.endswith("\n75 saved\n")
    assert err == "mlm: saving and stopping; another Ctrl-C kills the ranks\n"


def test_run_ranks_leaves_no_request_to_stop(tmp_path):
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'stop').touch()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with (tmp_path / "launcher.log").open("ab") as log:
        local.run_ranks(command, tmp_path, dict(os.environ), log)
    assert not (tmp_path / "stop").exists()


def test_stop_kills_nothing_on_signals_of_a_scheduler(tmp_path):
    """Slurm sends SIGTERM twice, for one."""
    process = launched(tmp_path, "does not stop")
    process.send_signal(signal.SIGUSR1)
    wait_for((tmp_path / "stop").exists)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out.endswith("\n1 the ranks were killed; nothing had been saved\n")


def has_stopped(process: psutil.Process, expected: bool) -> bool:
    return (process.status() == psutil.STATUS_STOPPED) == expected


def test_suspending_the_launcher_suspends_the_ranks(tmp_path):
    """Ctrl-Z and `fg`."""
    process = launched(tmp_path, "stops")
    inner = psutil.Process(int((tmp_path / "working").read_text()))
    (ranks,) = psutil.Process(process.pid).children()
    for number, stopped in ((signal.SIGTSTP, True), (signal.SIGCONT, False)) * 2:
        process.send_signal(number)
        for each in (ranks, inner, psutil.Process(process.pid)):
            wait_for(partial(has_stopped, each, stopped))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out.endswith("\n75 saved\n")


# torchrun and its rank, in a session of its own, that saves when torchrun is killed.
KILLED = """
import subprocess, sys
inner = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], start_new_session=True)
inner.wait()
"""
SAVES = """
import json, pathlib, sys, time
from mlm.health.stopping import listen, requested
folder = pathlib.Path(sys.argv[1])
listen()
(folder / "working").write_text("1")
while not requested(folder, main=False):
    time.sleep(0.02)
time.sleep(1)
(folder / "outcome.json").write_text(json.dumps({"code": 75, "sentence": "saved"}))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_ranks_save_when_torchrun_is_killed_and_are_waited_for(number, tmp_path):
    process = launched(tmp_path, SAVES, KILLED)
    (torchrun,) = psutil.Process(process.pid).children()
    time.sleep(1)  # until its processes were listed
    torchrun.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert out.endswith("\n75 saved\n")


def test_stop_kills_ranks_in_other_sessions_on_a_second_interrupt(tmp_path):
    process = launched(tmp_path, "does not stop")
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "stop").exists)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out.endswith("\n1 the ranks were killed; nothing had been saved\n")
    wait_for(lambda: dead(int((tmp_path / "working").read_text())))


def test_ranks_end_when_their_launcher_is_killed(tmp_path):
    process = launched(tmp_path, "does not stop")
    (ranks,) = psutil.Process(process.pid).children()
    try:
        process.kill()
        process.wait()
        wait_for(lambda: dead(ranks.pid))
    finally:
        os.kill(int((tmp_path / "working").read_text()), signal.SIGKILL)


def test_local_launcher_kills_a_stopped_rank_after_the_run_has_failed(tmp_path):
    process = launched(tmp_path, "fails", STOPPED)
    out, _ = process.communicate(timeout=50)
    assert out.endswith("\n1 rank 0 stalled\n")
    wait_for(lambda: dead(int((tmp_path / "working").read_text())))


def test_local_launcher_keeps_a_stopped_rank_while_the_run_continues(tmp_path):
    """Whoever stopped it may continue it."""
    process = launched(tmp_path, "continues", STOPPED)
    inner = int((tmp_path / "working").read_text())
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=4 * processes.SECONDS_BETWEEN_CHECKS)
    assert psutil.Process(inner).status() == psutil.STATUS_STOPPED
    os.kill(inner, signal.SIGKILL)
    out, _ = process.communicate(timeout=50)
    assert out.startswith("Starting the processes\n1 a rank died")
