"""A launcher from a plugin, which submits a job and does not wait for it."""

import sys
from pathlib import Path

import pytest

from launch.launchers import LAUNCHERS
from tests.launch.launch_fixtures import corpus, ranks, train

__all__ = ["corpus", "ranks"]  # fixtures

PLUGIN = '''
"""A launcher of the user's own: it writes a batch script for four GPUs, and submits nothing."""

from dataclasses import replace

from launch.launcher import Launcher
from launch.launchers import LAUNCHERS
from mlm.config import layout


class Batch(Launcher):
    def resolve(self, config):
        copies = max(1, 4 // (config.parallel.tp * config.parallel.pp))
        config = replace(
            config,
            parallel=replace(config.parallel, dp=copies),
            train=replace(config.train, device="cuda"),
        )
        return config, layout(config)

    def start(self, run):
        ranks = run.layout.world_size
        command = f"srun --ntasks {ranks} python -m mlm.train {run.config_path}"
        (run.folder / "batch.sh").write_text(command)
        return None


LAUNCHERS["batch"] = Batch
'''


@pytest.fixture
def batch(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_launcher.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_launcher", raising=False)
    monkeypatch.setitem(LAUNCHERS, "batch", LAUNCHERS["local"])  # removes the entry afterwards


def test_launcher_from_a_plugin_submits_a_run(corpus, ranks, batch, capfd):
    given = ["launch=batch", "plugins=[my_launcher]", "parallel.tp=2", "run.name=a"]
    assert train(f"data.corpus={corpus}", *given) == 0
    out, err = capfd.readouterr()
    assert "out of a rank" not in out
    assert err == ""
    script = (ranks / "runs" / "a" / "batch.sh").read_text()
    assert script.startswith("srun --ntasks 4 python -m mlm.train ")
    assert Path(script.split()[-1]).is_file()
