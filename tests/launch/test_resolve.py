"""Devices and degrees that a config leaves to the machine."""

import os
from functools import partial

import pytest
import torch

from launch.launchers import local
from launch.resolve import resolve
from mlm.config import TrainConfig, as_dict, load
from mlm.errors import UserError


def with_gpus(monkeypatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def settings(**sections) -> TrainConfig:
    plain = as_dict(TrainConfig())
    plain["data"]["shards"] = "x"
    plain["model"]["num_hidden_layers"] = 2  # fits into any memory
    for name, values in sections.items():
        plain[name] |= values
    return load(TrainConfig, plain)


@pytest.mark.parametrize(
    ("gpus", "processes", "degrees", "dp", "device"),
    [
        (0, None, {"tp": 2, "pp": 2}, 1, "cpu"),
        (8, None, {"tp": 2, "pp": 2}, 2, "cuda"),
        (8, None, {"tp": 2, "dp": 1}, 1, "cuda"),
        (0, 8, {"tp": 2}, 4, "cpu"),
    ],
)
def test_resolve_sets_dp_auto_to_the_available_devices(
    gpus, processes, degrees, dp, device, monkeypatch
):
    with_gpus(monkeypatch, gpus)
    config, layout = resolve(settings(parallel=degrees), processes)
    assert (config.parallel.dp, layout.dp, config.train.device) == (dp, dp, device)


def test_resolve_refuses_more_gpus_than_are_visible(monkeypatch):
    with_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match=r"train.device=cuda is asked for, and no GPU is visible"):
        resolve(settings(train={"device": "cuda"}))
    with_gpus(monkeypatch, 4)
    with pytest.raises(UserError, match=r"puts 8 processes on this machine.*the 4 visible ones"):
        resolve(settings(parallel={"tp": 8}))
    assert resolve(settings(parallel={"tp": 8}, train={"device": "cpu"}))[1].tp == 8


def test_resolve_counts_the_processes_of_this_machine_alone(monkeypatch):
    """Two machines of eight GPUs under torchrun."""
    with_gpus(monkeypatch, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert resolve(settings(parallel={"tp": 8}), processes=16)[1].dp == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    with pytest.raises(UserError, match=r"puts 16 processes on this machine.*the 8 visible ones"):
        resolve(settings(parallel={"tp": 8}), processes=16)


def test_resolve_refuses_processes_that_do_not_match_the_layout(monkeypatch):
    with_gpus(monkeypatch, 0)
    with pytest.raises(UserError, match=r"3 processes were started, but .* needs 2; start 2"):
        resolve(settings(parallel={"tp": 2}), processes=3)


def test_environment_of_ranks_sets_threads_and_paths(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    env = local.environment(10**6)
    assert (env["OMP_NUM_THREADS"], env["PYTHONSAFEPATH"]) == ("1", "1")
    assert env["PYTHONPATH"].split(os.pathsep)[-1] == "/theirs"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert local.environment(1)["OMP_NUM_THREADS"] == "3"


def test_environment_of_ranks_has_no_variables_of_hydra(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("HYDRATED", "1")
    env = local.environment(1)
    assert "HYDRA_FULL_ERROR" not in env
    assert env["HYDRATED"] == "1"


def test_resolve_refuses_a_state_that_is_larger_than_the_memory(monkeypatch):
    """That of the ranks on this machine; GPUs have their own memory."""
    with_gpus(monkeypatch, 0)
    monkeypatch.setattr("launch.resolve.memory_limit", lambda: 50 * 10**9)
    xl = partial(settings, model={"num_hidden_layers": 36})
    with pytest.raises(UserError, match=r"and this machine has 50.0 GB; choose a smaller model"):
        resolve(xl())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert resolve(xl(parallel={"tp": 4}), processes=4)[1].tp == 4
    with_gpus(monkeypatch, 1)
    assert resolve(xl())[0].train.device == "cuda"
