"""The text of the batch script of a run."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.srun import PORT_0, PORTS
from mlm.config.running import LaunchConfig

SCRIPT = "job.sbatch"
CLEANED = "unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"  # of the shell that submits


@dataclass(frozen=True)
class Job:
    """What a script is written of.

    runs: the folder of all runs, absolute; name: of this one in it; processes: on each node
    first_step: whether a corpus is to be prepared; path: of the code, for PYTHONPATH; None: it is
    installed
    """

    runs: Path
    name: str
    launch: LaunchConfig
    processes: int
    first_step: bool
    path: Path | None
    working_folder: Path

    @property
    def folder(self) -> Path:
        return self.runs / self.name


def script(job: Job) -> str:
    """The whole script. It needs nothing of the shell that submits it."""
    return "\n".join([*_head(job), "", *_environment(job), "", *_steps(job)]) + "\n"


def _head(job: Job) -> Iterator[str]:
    launch, run = job.launch, job.folder
    per_task = launch.ranks == "srun"
    options: dict[str, str | int | bool | None] = {
        "job-name": job.name,
        "nodes": launch.nodes,
        "ntasks-per-node": job.processes if per_task else 1,
        "gpus-per-node": launch.gpus_per_node or None,
        "cpus-per-task": launch.cpus_per_task,
        "time": launch.time,
        "partition": launch.partition,
        "signal": f"B:USR1@{launch.warn_seconds}",
        "requeue": True,
        "open-mode": "append",
        "output": str(run / "logs" / "slurm-%j.out"),
        "chdir": str(job.working_folder),
    }
    yield "#!/usr/bin/env bash"
    yield f"# Written by mlm train launch=slurm; `sbatch {shlex.quote(str(run / SCRIPT))}` resumes."
    for name, value in {**options, **launch.sbatch}.items():
        if value is True:
            yield f"#SBATCH --{name}"
        elif value is not None and value is not False:
            yield f"#SBATCH --{name}={_quoted(str(value))}"


def _environment(job: Job) -> Iterator[str]:
    launch = job.launch
    yield "set -uo pipefail"
    yield CLEANED
    yield f"RUN={shlex.quote(str(job.folder))}"
    yield "JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    variables = {
        "POLYMLM_ATTEMPT": '"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
        "SRUN_CPUS_PER_TASK": '"${SLURM_CPUS_PER_TASK:-1}"',
        "MASTER_ADDR": '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        "MASTER_PORT": f"$(({PORT_0} + SLURM_JOB_ID % {PORTS}))",
        "PYTHONSAFEPATH": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if launch.interface:
        variables |= dict.fromkeys(
            ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), shlex.quote(launch.interface)
        )
    variables |= {name: shlex.quote(str(value)) for name, value in launch.env.items()}
    given = variables.pop("PYTHONPATH", None)
    if given is not None:
        yield f"export PYTHONPATH={given}"
    if job.path is not None:
        variables["PYTHONPATH"] = f'{shlex.quote(str(job.path))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    for name, value in variables.items():
        yield f"export {name}={value}"
    yield from launch.prologue


def _steps(job: Job) -> Iterator[str]:
    launch = job.launch
    python = _python(launch)
    once = ["srun", "--nodes=1", "--ntasks=1", *launch.srun, *python, "-m"]
    yield "warned=0 ended=0"
    yield "trap 'warned=1; scancel --signal=USR1 \"$JOB\"' USR1  # the time limit is near: save"
    yield 'END=$(date -d "$(squeue -h -j "$SLURM_JOB_ID" -o %e)" +%s 2>/dev/null || echo 0)'
    # A TERM at the limit ends what is late; one before is a cancellation, or Slurm's own requeue.
    yield "trap '[ $warned = 1 ] && [ \"$(date +%s)\" -ge $((END - 5)) ] || ended=1' TERM"
    yield 'run() { "$@" & while wait $!; kill -0 $! 2>/dev/null; do :; done; wait $!; }'
    start = f"run {_ranks(job, python)}"
    if job.first_step:
        start = f'run {shlex.join([*once, "launch.launchers.slurm.prepare"])} "$RUN" && {start}'
    yield start
    judge = shlex.join([*python, "-m", "launch.launchers.slurm.ended"])
    yield f'again=$({judge} "$RUN" {launch.max_requeues} $warned $ended); code=$?'
    yield '[ -z "$again" ] || exec scontrol requeue "$JOB"'
    yield "exit $code"


def _ranks(job: Job, python: Sequence[str]) -> str:
    launch = job.launch
    srun = ["srun", "--kill-on-bad-exit=1", *launch.srun]
    train = ["-m", "launch", "train", f"run.dir={job.runs}", f"run.name={job.name}"]
    if launch.ranks == "srun":
        return shlex.join([*srun, *python, *train])
    options = f"--nproc-per-node={job.processes} --max-restarts=0 --signals-to-handle=SIGQUIT"
    if launch.nodes == 1:
        where = "--standalone --local-addr=127.0.0.1"
    else:
        where = f"--nnodes={launch.nodes} --node-rank=$SLURM_NODEID"
        where += " --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT"
    torchrun = shlex.join([*python, "-m", "torch.distributed.run"])
    # torchrun leaves the signals to its ranks, which save.
    inner = f'trap "" TERM USR1; exec {torchrun} {where} {options} {shlex.join(train)}'
    return shlex.join([*srun, "bash", "-c", inner])


def _python(launch: LaunchConfig) -> list[str]:
    """The interpreter; in a container that of its PATH."""
    contained = any("container" in option for option in launch.srun)
    if launch.wrap is None:
        return ["python" if contained else sys.executable]
    return [*shlex.split(launch.wrap), "python"]


def _quoted(value: str) -> str:
    return shlex.quote(value) if set(value) & set(" \t'\"") else value
