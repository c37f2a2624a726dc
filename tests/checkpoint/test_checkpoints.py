"""`mlm checkpoints`: what is listed, found damaged, and deleted."""

import fcntl
import shutil
from pathlib import Path

import pytest

from launch.cli import main
from mlm import checkpoint
from mlm.checkpoint.listing import entries
from mlm.errors import CONFIG, DONE
from tests.exported_run import trained_run
from tests.state_reading import newest_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with whole checkpoints of steps 1, 2, 3 and 4."""
    folder = shutil.copytree(trained_run(), tmp_path / "run")
    kept = newest_checkpoint(folder)
    for step in (1, 2, 3, 4):
        shutil.copytree(kept, folder / "kept" / f"step-{step:08d}")
    shutil.rmtree(folder / "checkpoints")
    (folder / "kept").rename(folder / "checkpoints")
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "launcher.log").touch()
    return folder


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def damage(folder: Path) -> None:
    victim = next(folder.glob("*.distcp"))
    victim.write_bytes(victim.read_bytes()[:-1])


def test_checkpoints_are_listed_and_verified(run, capfd):
    damage(run / "checkpoints" / "step-00000002")
    (run / "checkpoints" / "step-00000005.partial").mkdir()
    assert main(["checkpoints", str(run)]) == DONE
    rows = [row.rstrip() for row in capfd.readouterr().out.splitlines()]
    assert rows[0].split() == ["step", "saved", "size", "layout", "state"]
    assert [row.endswith("whole") for row in rows[1:5]] == [True, False, True, True]
    assert ".distcp is damaged: it differs from checkpoint.json" in rows[2]
    assert "tp 2 pp 2 dp 1 ZeRO-1" in rows[1]
    assert "interrupted save" in rows[5]
    assert len(names(run)) == 5
    assert main(["checkpoints", str(run), "verify=false"]) == DONE
    assert "is damaged" not in capfd.readouterr().out


def test_prune_keeps_the_newest_and_deletes_broken_folders(run, capfd):
    damage(run / "checkpoints" / "step-00000004")
    (run / "checkpoints" / "step-00000005.partial").mkdir()
    assert main(["checkpoints", str(run), "keep=1", "keep_every=2"]) == DONE
    out = capfd.readouterr().out
    assert out.count("deleted ") == 3
    assert names(run) == ["step-00000002", "step-00000003"]
    assert [entry.wrong for entry in entries(run)] == [None, None]


def test_checkpoints_deletes_nothing_on_wrong_arguments(run, capfd, tmp_path):
    for arguments, message in (
        (["keep=0"], "keep=0 is below 1; give 1 or more"),
        (["keep=1", "keep_every=-2"], "keep_every=-2 is below 0"),
        (["keep_every=2"], "keep_every=2 is given without keep"),
        (["keep=1", "verify=false"], "keep=1 is given with verify=false"),
    ):
        assert main(["checkpoints", str(run), *arguments]) == CONFIG
        assert message in capfd.readouterr().err
    with (run / "logs" / "launcher.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        assert main(["checkpoints", str(run), "keep=1"]) == CONFIG
        assert "is in use by a run that has not ended" in capfd.readouterr().err
    for folder in checkpoint.all_checkpoints(run):
        damage(folder)
    assert main(["checkpoints", str(run), "keep=1"]) == CONFIG
    assert "has no whole checkpoint, so nothing of it is deleted" in capfd.readouterr().err
    assert len(names(run)) == 4
    (tmp_path / "empty").mkdir()
    for place, message in (("empty", "has no checkpoints; give"), ("nowhere", "is not a folder")):
        assert main(["checkpoints", str(tmp_path / place)]) == CONFIG
        assert message in capfd.readouterr().err
