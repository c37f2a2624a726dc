"""`launch=slurm` on a real Slurm: whatever ends a job, the run goes on as if nothing had been."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launch.launchers.slurm.ended import REQUEUES
from mlm.errors import DATA, DONE, FAILED, REQUEUE
from mlm.files.jsonl import read_rows
from mlm.health import heartbeat
from tests.checkpoint.test_resume import exact
from tests.launch.cluster import Cluster, missing
from tests.launch.launch_fixtures import SMALL, small_config, with_shards, write_corpus
from tests.places import ROOT

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(bool(missing()), reason=str(missing()))]

STEPS, EVERY = 60, 4
GIVEN = [text for text in SMALL if not text.startswith("data.vocab_size")]
GIVEN += ["train.log_every=1", "eval.every=0", f"checkpoint.every={EVERY}", "tracker=none"]
JOB = ["launch=slurm", "launch.nodes=2", "launch.cpus_per_task=2", "launch.interface=lo"]
JOB += ["launch.time=00:10:00", "launch.env={OMP_NUM_THREADS: 1}"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as started:
        yield started


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    settings = with_shards(small_config(write_corpus(folder / "text")), folder / "made")
    return Path(str(settings.data.shards))


def train(where: Path, cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | cluster.environment
    env |= {"PYTHONPATH": f"{ROOT}:{where}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launch", "train", *arguments]
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def unbroken(cluster, shards, tmp_path_factory) -> Path:
    """The folder of the same run on this machine, on two ranks."""
    where = tmp_path_factory.mktemp("unbroken")
    given = [*GIVEN, f"data.shards={shards}", f"train.steps={STEPS}", "parallel.tp=2"]
    done = train(where, cluster, *given, "run.name=a")
    assert done.returncode == DONE, done.stderr
    return where / "runs" / "a"


class Job:
    """A run of two ranks, one on each node, as a job of Slurm."""

    def __init__(self, cluster: Cluster, shards: Path, where: Path, *more: str) -> None:
        self.cluster, self.folder = cluster, where / "runs" / "a"
        given = [*GIVEN, f"data.shards={shards}", f"train.steps={STEPS}", "parallel.tp=2", *JOB]
        self.submitted = train(where, cluster, *given, "run.name=a", *more)
        assert self.submitted.returncode == 0, self.submitted.stderr
        self.id = str(read_rows(self.folder / "submissions.jsonl")[-1]["job"])

    def rows(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def state(self) -> str:
        return self.cluster.run("squeue", "-h", "-j", self.id, "-t", "all", "-o", "%T")

    def wait_for_steps(self, steps: int) -> None:
        before = self.rows()
        self.wait_for(lambda: self.rows() >= before + steps)

    def wait_for(self, holds: Callable[[], object]) -> None:
        def now() -> bool:
            assert self.state() not in ("FAILED", "COMPLETED", "CANCELLED"), self.output()
            return bool(holds())

        self.cluster.wait_for(now)

    def end(self) -> int:
        """Waits for the end of the job and all its requeues; returns the code of the outcome."""
        over = ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT")
        self.cluster.wait_for(lambda: self.state() in over)
        return json.loads((self.folder / "outcome.json").read_text())["code"]

    def output(self) -> str:
        return (self.folder / "logs" / f"slurm-{self.id}.out").read_text()

    def ends(self) -> list[tuple[int, bool]]:
        """The code of each attempt that the script saw the end of, and whether it was requeued."""
        return [(row["code"], row["requeued"]) for row in read_rows(self.folder / REQUEUES)]

    def rank(self, rank: int) -> psutil.Process:
        beat = heartbeat.read(heartbeat.path_of(self.folder, rank))
        assert beat is not None
        return psutil.Process(beat.process)

    def is_as(self, unbroken: Path) -> None:
        assert self.end() == DONE, self.output()
        assert exact(self.folder) == exact(unbroken)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["torchrun", pytest.param("srun", marks=pytest.mark.slow)])
def test_job_equals_a_run_on_this_machine_and_comes_back_before_its_time_is_over(
    way, cluster, shards, unbroken, tmp_path
):
    job = Job(cluster, shards, tmp_path, f"launch.ranks={way}")
    job.wait_for_steps(5)
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)  # what Slurm does near the limit
    job.is_as(unbroken)
    assert job.ends() == [(REQUEUE, True), (DONE, False)], job.output()
    assert "requeued]" in job.output()
    starts = read_rows(job.folder / "starts.jsonl")
    assert [row["attempt"] for row in starts] == [f"{job.id}.0", f"{job.id}.1"]
    same = [(folder / "config.yaml").read_text() for folder in (job.folder, unbroken)]
    assert same[0].replace(str(tmp_path), "") == same[1].replace(str(unbroken.parents[1]), "")


def requeue(job: Job) -> None:
    job.cluster.run("scontrol", "requeue", job.id)


def kill_a_rank(job: Job) -> None:
    job.rank(1).kill()


def kill_torchrun(job: Job) -> None:
    parent = job.rank(1).parent()
    assert parent is not None
    assert "torch.distributed.run" in " ".join(parent.cmdline())
    parent.kill()


def kill_the_batch_shell(job: Job) -> None:
    for process in psutil.process_iter(["cmdline"]):
        if f"job{int(job.id):05d}/slurm_script" in " ".join(process.info["cmdline"] or []):
            process.kill()
            return
    raise AssertionError("there is no batch shell")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("fault", "way"),
    [
        (requeue, "torchrun"),
        (requeue, "srun"),
        (kill_a_rank, "torchrun"),
        (kill_a_rank, "srun"),
        (kill_torchrun, "torchrun"),
    ],
)
def test_job_comes_back_after_a_fault(fault, way, cluster, shards, unbroken, tmp_path):
    job = Job(cluster, shards, tmp_path, f"launch.ranks={way}")
    job.wait_for_steps(6)
    fault(job)
    job.is_as(unbroken)
    assert len(read_rows(job.folder / "starts.jsonl")) == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_job_whose_shell_was_killed_resumes_when_it_is_submitted_again(
    cluster, shards, unbroken, tmp_path
):
    job = Job(cluster, shards, tmp_path)
    job.wait_for_steps(6)
    kill_the_batch_shell(job)
    cluster.wait_for(lambda: job.state() in ("FAILED", "COMPLETED"))
    assert job.end() in (REQUEUE, FAILED)
    Job(cluster, shards, tmp_path).is_as(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_job_is_preempted_and_comes_back(cluster, shards, unbroken, tmp_path):
    job = Job(cluster, shards, tmp_path, "launch.partition=spot")
    job.wait_for_steps(6)
    other = cluster.run(
        "sbatch", "--parsable", "--output=/dev/null", "-N2", "--exclusive", "--wrap", "sleep 5"
    )
    cluster.wait_for(lambda: cluster.run("squeue", "-h", "-j", other, "-o", "%T") == "RUNNING")
    job.is_as(unbroken)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_job_leaves_a_node_that_is_down(shards, unbroken, tmp_path):
    with Cluster(tmp_path / "cluster", nodes=3) as cluster:
        job = Job(cluster, shards, tmp_path)
        job.wait_for_steps(6)
        done = job.rows()
        cluster.kill_node("node2")
        job.is_as(unbroken)
        resumed = next(
            line for line in job.output().splitlines() if line.startswith("Resuming at step")
        )
        assert done - int(resumed.split(":")[0].split()[-1]) <= EVERY + 20  # rows went on meanwhile


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_job_saves_when_it_is_cancelled_and_does_not_come_back(cluster, shards, tmp_path):
    job = Job(cluster, shards, tmp_path)
    job.wait_for_steps(6)
    cluster.run("scancel", job.id)
    assert job.end() == REQUEUE
    assert job.state() == "CANCELLED"
    assert job.ends() in ([], [(REQUEUE, False)])
    time.sleep(5)
    assert job.state() == "CANCELLED"
    steps = int(json.loads((job.folder / "outcome.json").read_text())["step"])
    assert (job.folder / "checkpoints" / f"step-{steps:08d}").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_job_with_a_crash_that_would_happen_again_is_not_requeued(cluster, shards, tmp_path):
    (tmp_path / "crashing.py").write_text(
        "from mlm.training.schedule import SCHEDULES\n"
        "def rate(step, steps, *rest):\n"
        "    if step == 6: raise KeyError('a fault of the plug-in')\n"
        "    return 1e-3\n"
        "SCHEDULES['crashing'] = rate\n"
    )
    more = [
        "plugins=[crashing]",
        "schedule=crashing",
        f"launch.env={{OMP_NUM_THREADS: 1, PYTHONPATH: {tmp_path}}}",
    ]
    job = Job(cluster, shards, tmp_path, *more)
    assert job.end() == FAILED
    assert job.ends() == [(FAILED, False)]
    assert "not requeued: it would fail again" in job.output()


def test_requests_that_slurm_cannot_fulfil_are_refused_with_its_reason(cluster, shards, tmp_path):
    given = [*GIVEN, f"data.shards={shards}", "parallel.tp=1", *JOB, "run.name=a"]
    for more, reason in (
        (["launch.nodes=50", "train.global_batch_size=400"], "sbatch refuses this job"),
        (["launch.partition=none"], "sbatch refuses this job"),
        (["launch.time=86400"], "launch.time=86400 is not hours, minutes and seconds"),
        (["launch.gpus_per_node=3", "parallel.dp=2"], "is 2 processes, and launch.nodes=2 x"),
    ):
        done = train(tmp_path, cluster, *given, "launch.check=strict", *more)
        assert done.returncode == 2, done.stdout
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_job_prepares_a_corpus_and_refuses_a_bad_one(cluster, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "en.txt").write_bytes(b"a line\n\n\xff\xfe is no text\n")
    job = Job.__new__(Job)
    given = [*GIVEN, f"data.corpus={text}", "train.steps=1", *JOB, "launch.nodes=1", "run.name=a"]
    assert train(tmp_path, cluster, *given).returncode == 0
    job.cluster, job.folder = cluster, tmp_path / "runs" / "a"
    job.id = str(read_rows(job.folder / "submissions.jsonl")[-1]["job"])
    assert job.end() == DATA
    assert job.ends() == [(DATA, False)]
    assert "en.txt" in job.output()
