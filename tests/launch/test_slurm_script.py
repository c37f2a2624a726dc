"""The batch script of `launch=slurm`, on a machine without Slurm and without torch imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.srun import first_host, ranks_of_srun
from tests.launch.launch_fixtures import train
from tests.places import ROOT

GIVEN = ["data.shards=shards", "run.name=lr/003", "parallel.tp=2", "launch=slurm"]
GIVEN += ["launch.dry_run=true", "launch.nodes=2", "launch.gpus_per_node=4"]
GIVEN += ["train.global_batch_size=96"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The script of these settings and more, as options of sbatch and other lines."""
    monkeypatch.chdir(tmp_path)

    def write(*more: str) -> tuple[dict[str, str], str]:
        assert train(*GIVEN, "run.fresh=true", *more) == 0
        path = tmp_path / "runs/lr/003/job.sbatch"
        subprocess.run(["bash", "-n", str(path)], check=True)
        text = path.read_text()
        options = [line[10:] for line in text.splitlines() if line.startswith("#SBATCH --")]
        return {name: value for name, _, value in (each.partition("=") for each in options)}, text

    return write


def test_script_asks_for_what_the_settings_say(written, tmp_path):
    options, text = written(
        "launch.time=24:00:00", "launch.partition=gpu", "launch.cpus_per_task=8"
    )
    folder = tmp_path / "runs/lr/003"
    assert options == {
        "job-name": "lr/003",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "cpus-per-task": "8",
        "time": "24:00:00",
        "partition": "gpu",
        "signal": "B:USR1@300",
        "requeue": "",
        "open-mode": "append",
        "output": f"{folder}/logs/slurm-%j.out",
        "chdir": str(tmp_path),
    }
    assert f" -m launch train run.dir={tmp_path}/runs run.name=lr/003" in text
    assert "--nproc-per-node=4 --max-restarts=0 --signals-to-handle=SIGQUIT" in text
    assert "launch.launchers.slurm.prepare" not in text
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["parallel"]["dp"] == 4
    assert config["run"] == {"name": "lr/003", "dir": f"{tmp_path}/runs", "fresh": False}


def test_script_takes_options_variables_and_lines_of_the_user(written):
    options, text = written(
        "launch.ranks=srun",
        "launch.sbatch={account: me, exclusive: true, requeue: false, comment: it is mine}",
        "launch.srun=['--mpi=pmix']",
        "launch.wrap='apptainer exec --nv image.sif'",
        "launch.prologue=[module load cuda]",
        "launch.env={NCCL_DEBUG: INFO, NOTE: \"it is 'mine'\"}",
        "launch.interface=ib0",
    )
    assert (options["account"], options["exclusive"]) == ("me", "")
    assert options["comment"] == "'it is mine'"
    assert "requeue" not in options
    assert options["ntasks-per-node"] == "4"
    assert "srun --kill-on-bad-exit=1 --mpi=pmix apptainer exec --nv image.sif python -m" in text
    for line in (
        "module load cuda",
        "export NCCL_DEBUG=INFO",
        "export GLOO_SOCKET_IFNAME=ib0",
        "export NCCL_SOCKET_IFNAME=ib0",
    ):
        assert line in text.splitlines()
    shown = subprocess.run(
        [
            "bash",
            "-c",
            "\n".join(line for line in text.splitlines() if "NOTE" in line) + '; echo "$NOTE"',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "it is 'mine'\n"


def test_submission_needs_no_torch(tmp_path):
    code = (
        "import sys; from launch.cli import main\n"
        f"assert main(['train', 'model=tiny', *{GIVEN}]) == 0\n"
        "assert 'torch' not in sys.modules, 'a login node may not have it'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["launch.time=86400"], "launch.time=86400 is not hours, minutes and seconds; write 24:00"),
        (["parallel.dp=3"], "is 6 processes, and launch.nodes=2 x launch.gpus_per_node=4"),
        (["launch.dry_run=false"], "launch=slurm needs the command sbatch, which is not here"),
        (["launch.sbatch={a: [1]}"], "launch.sbatch"),
    ],
)
def test_submission_refuses_what_no_job_can_have(more, reason, written, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert train(*GIVEN, *more) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


TASK = {
    "SLURM_STEP_NUM_TASKS": "11",
    "SLURM_PROCID": "9",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_JOB_ID": "12345678",
}


def test_task_of_srun_is_a_rank():
    assert ranks_of_srun(TASK) == {
        "RANK": "9",
        "WORLD_SIZE": "11",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "25678",
    }
    given = {"MASTER_ADDR": "head", "MASTER_PORT": "1"}
    assert given.items().isdisjoint(ranks_of_srun(TASK | given).items())
    for other in ({"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}):
        assert ranks_of_srun(TASK | other) == {}
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
    assert ranks_of_srun(batch) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-12,20],login1", "node03"),
        ("n1", "n1"),
        ("a,b", "a"),
        ("gpu[1,2]-ib,x", "gpu1-ib"),
        ("h-[007]", "h-007"),
    ],
)
def test_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first
