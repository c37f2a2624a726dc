"""A real Slurm of a few nodes on this machine, for the tests of `launch=slurm`.

Each node is a slurmd with a hostname and an /etc/hosts of its own (namespaces), all on loopback.
It needs Debian's slurmctld, slurmd, slurm-client and munge, and root.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged")
SYSTEM = "/usr/sbin"
CPUS, GPUS = 4, 2
DEVICES = ("/dev/null", "/dev/zero")  # Slurm counts them as GPUs
PATIENCE = 300  # seconds to wait for anything, on a busy machine

# cred_expire is how long a requeued job waits; TERM is followed by KILL after KillWait.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=30
SlurmdTimeout=30
GresTypes=gpu
"""


def missing() -> str | None:
    """Why there can be no cluster here; None: there can."""
    path = f"{os.environ['PATH']}:{SYSTEM}"
    absent = [name for name in COMMANDS if not shutil.which(name, path=path)]
    if absent:
        return (
            f"Slurm is not installed here ({', '.join(absent)}): apt-get install slurmctld slurmd"
        )
    if subprocess.run(["unshare", "--uts", "--mount", "true"], check=False).returncode:
        return "the nodes of a Slurm on one machine need namespaces, which root can make"
    return None


class Cluster:
    """A cluster that runs; a context. Partition `main` preempts `spot`."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder, self.nodes = folder, [f"node{number + 1}" for number in range(nodes)]
        self._daemons: dict[str, subprocess.Popen] = {}
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SYSTEM}",
        }

    def __enter__(self) -> "Cluster":
        folder = self.folder
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir(parents=True)
        folder.chmod(0o755)
        self._write_configuration()
        key = folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        socket_file = folder / "munge.socket"
        self._start(
            "munged",
            *("--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}"),
            *(f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")),
        )
        self.wait_for(socket_file.exists)
        self._start("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)
        self.wait_for(
            lambda: (
                self.run("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D")
                == str(len(self.nodes))
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.run("squeue", "-h", "-o", "%A").split():
            self.run("scancel", job)
        self.wait_for(lambda: not self.run("squeue", "-h", "-o", "%A"))
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def start_node(self, node: str) -> None:
        inner = 'mount --bind "$1" /etc/hosts && hostname "$2" && exec slurmd -D -N "$2"'
        inside = ["--uts", "--mount", "sh", "-c", inner, "-"]
        self._start("unshare", *inside, str(self.folder / "hosts"), node, name=node)

    def kill_node(self, node: str) -> None:
        """As if the machine had lost its power: no process of it is asked anything."""
        self._daemons.pop(node).kill()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def wait_for(self, holds: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < end, self.run("scontrol", "show", "job")
            time.sleep(0.5)

    def _start(self, *command: str, name: str | None = None) -> None:
        with (self.folder / f"{name or command[0]}.out").open("ab") as out:
            self._daemons[name or command[0]] = subprocess.Popen(
                command, env=os.environ | self.environment, stdout=out, stderr=out
            )

    def _write_configuration(self) -> None:
        host, (port, *ports) = socket.gethostname(), _free_ports(1 + len(self.nodes))
        text = CONFIG.format(host=host, port=port, folder=self.folder)
        for node, own in zip(self.nodes, ports, strict=True):
            text += f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={own} "
            text += f"CPUs={CPUS} RealMemory=4096 Gres=gpu:{GPUS}\n"
        both = "Nodes=ALL MaxTime=INFINITE DefaultTime=10"
        text += f"PartitionName=main Default=YES {both} PriorityTier=10\n"
        text += f"PartitionName=spot {both} PriorityTier=1 PreemptMode=REQUEUE\n"
        (self.folder / "slurm.conf").write_text(text)
        gpus = ",".join(DEVICES[:GPUS])
        names = ",".join(self.nodes)
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={names} Name=gpu File={gpus}\n"
        )
        hosts = Path("/etc/hosts").read_text()
        (self.folder / "hosts").write_text(hosts + f"\n127.0.0.1 {' '.join(self.nodes)}\n")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
