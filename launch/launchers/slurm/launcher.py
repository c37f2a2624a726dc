"""Submission of a run to Slurm, from a machine that needs no GPU."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import mlm.config
from launch import IS_CHECKOUT, ROOT, run_folder
from launch.environment import started_with
from launch.launcher import Launcher, Run
from launch.launchers.slurm.script import SCRIPT, Job, script
from mlm.config import TrainConfig
from mlm.errors import UserError
from mlm.files.jsonl import append_row, read_rows
from parallel.layout import Layout, LayoutError

SUBMISSIONS = "submissions.jsonl"  # a row for each job: id, time, host, command, commit
TIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}(:\d{2})?|\d+-\d{1,2}", re.ASCII)


class Slurm(Launcher):
    """A job of Slurm. `device` and `dp` follow what is asked for, not this machine."""

    elsewhere = True

    def resolve(self, config: TrainConfig) -> tuple[TrainConfig, Layout]:
        launch, degrees = config.launch, config.parallel
        _check(config)
        replica, gpus = degrees.tp * degrees.pp, launch.nodes * launch.gpus_per_node
        dp = degrees.dp
        if dp == "auto":
            dp = max(1, (gpus or launch.nodes) // replica)
        layout = mlm.config.layout(config, dp)
        device = config.train.device
        if device == "auto":
            device = "cuda" if gpus else "cpu"
        try:
            layout.grad_accum_steps(config.train.global_batch_size, config.train.micro_batch_size)
        except LayoutError as error:
            raise UserError(str(error)) from None
        if layout.world_size % launch.nodes or (gpus and layout.world_size != gpus):
            raise UserError(
                f"parallel.tp={layout.tp} x parallel.pp={layout.pp} x parallel.dp={layout.dp} is "
                f"{layout.world_size} processes, and launch.nodes={launch.nodes} x "
                f"launch.gpus_per_node={launch.gpus_per_node} are to have one for each GPU, as "
                f"many on each node; change the degrees or the nodes"
            )
        train = replace(config.train, device=device)
        return replace(config, parallel=replace(degrees, dp=dp), train=train), layout

    def start(self, run: Run) -> None:
        """Writes the script, has Slurm check it, and submits it. Raises `UserError`."""
        launch, folder = run.config.launch, run.folder
        fresh = run.config.run.fresh
        _check_not_submitted(folder)
        config = replace(run.config, run=replace(run.config.run, fresh=False))
        text = script(
            Job(
                Path(config.run.dir),
                str(config.run.name),
                launch,
                run.layout.world_size // launch.nodes,
                bool(config.data.shards is None or config.eval.corpus),
                ROOT if IS_CHECKOUT else None,
                Path.cwd(),
            )
        )
        if not launch.dry_run and launch.check != "off":
            _ask(text, launch.check == "strict")
        with run_folder.held(folder):
            if fresh and folder.exists():
                shutil.rmtree(folder)
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            run_folder.write_submitted(folder, config, run.overrides)
            (folder / SCRIPT).write_text(text, "utf-8")
        if launch.dry_run:
            print(f"{folder / SCRIPT} is written; `sbatch {folder / SCRIPT}` submits it")
            return
        job = _sbatch("--parsable", str(folder / SCRIPT)).partition(";")[0].strip()
        append_row(folder / SUBMISSIONS, {"job": job, **started_with()})
        print(
            f"Job {job} will train {folder}\n"
            f"  squeue -j {job}      where it stands\n"
            f"  tail -F {folder}/logs/slurm-{job}.out      what it says\n"
            f"  touch {folder}/stop      saves and ends it; so does scancel {job}, if a save takes "
            f"less than Slurm's KillWait",
            flush=True,
        )


def _check(config: TrainConfig) -> None:
    """Raises `UserError` for settings that no job can have."""
    time = config.launch.time
    if time is not None and not TIME.fullmatch(time):
        raise UserError(
            f"launch.time={time} is not hours, minutes and seconds; write 24:00:00, or 2-12:00:00 "
            f"for two and a half days (in quotes in YAML, which makes a number of it)"
        )
    if not shutil.which("sbatch") and not config.launch.dry_run:
        raise UserError(
            "launch=slurm needs the command sbatch, which is not here; start on a login node of "
            "the cluster, or add launch.dry_run=true to write the script alone"
        )


def _check_not_submitted(folder: Path) -> None:
    """Raises `UserError` where a job of this run waits or runs."""
    rows = read_rows(folder / SUBMISSIONS, skip_damaged=True)
    jobs = [str(row["job"]) for row in rows if "job" in row]
    if not jobs or not shutil.which("squeue"):
        return
    asked = ["squeue", "--noheader", "--jobs", jobs[-1], "--format", "%T"]
    state = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if state and state[0] not in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
        raise UserError(
            f"job {jobs[-1]} of {folder} is {state[0].lower()}; wait for it, end it with "
            f"`scancel {jobs[-1]}`, or give another run.name"
        )


def _ask(text: str, strict: bool) -> None:
    """Has Slurm check a script; what it says is shown. strict: what it refuses is not submitted"""
    try:
        _sbatch("--test-only", given=text)
    except UserError as error:
        if strict:
            raise
        print(f"{error} (submitting all the same: launch.check=warn)", flush=True)


def _sbatch(*options: str, given: str | None = None) -> str:
    """What sbatch prints; raises `UserError` with its reason."""
    done = subprocess.run(
        ["sbatch", *options], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise UserError(
            f"sbatch refuses this job ({reason.removeprefix('sbatch: error: ')}); change launch.*, "
            f"or write the script with launch.dry_run=true and change that"
        )
    return done.stdout
