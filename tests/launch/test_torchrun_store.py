"""What the ranks of `torchrun -m launch train` tell each other, on a store in this process."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from launch.launcher import Outcome, RunFailed
from launch.launchers import torchrun
from launch.launchers.torchrun import train_as_rank
from launch.verb import Composed
from mlm.errors import CONFIG, DATA, FAILED, REQUEUE, DataError, UserError
from mlm.health.outcome import write_outcome

LAUNCHER: Any = None  # `ready` is replaced


class Exited(BaseException):
    pass


def composing(task: Callable[[Composed], float | None]) -> None:
    task(Composed({"run": {"dir": "runs", "name": None}}, []))


class Store:
    """A store on which the other rank listens only when rank 0 has asked twice who has heard."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self.asked = 0
        self.other: Callable[[], None] = lambda: None

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return set(keys) <= set(self.values)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        if not set(keys) <= set(self.values):
            raise RuntimeError("wait timeout")

    def add(self, key: str, amount: int) -> int:
        if not amount:
            self.asked += 1
            if self.asked == 2:
                self.other()
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """That of rank 0 of 2; `ready` gives a run whose config.yaml is in `tmp_path`."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    path = tmp_path / "config.yaml"
    path.touch()
    monkeypatch.setattr(torchrun, "check", lambda composed: composed)
    monkeypatch.setattr(
        torchrun,
        "ready",
        lambda config, launcher: SimpleNamespace(config_path=path, folder=tmp_path),
    )
    monkeypatch.setattr(torchrun, "listen", lambda: None)  # signals stay pytest's

    def exited(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr(torchrun.os, "_exit", exited)
    store = Store()
    monkeypatch.setattr(torchrun, "_store", lambda: store)
    return store


def result(function: Callable[[], Any]) -> Any:
    """What a rank gets: a value, or the type and the code of its error."""
    try:
        return function()
    except UserError as error:
        return type(error), error.code
    except SystemExit as error:
        return SystemExit, error.code


def failing(error: BaseException) -> Callable[[Any], None]:
    def composing(task: Any) -> None:
        raise error

    return composing


@pytest.mark.parametrize(
    ("given", "first", "second"),
    [
        (failing(DataError("it is bad")), (RunFailed, DATA), (RunFailed, DATA)),
        (failing(ValueError("a fault")), (RunFailed, FAILED), (RunFailed, FAILED)),
        (failing(SystemExit(0)), (SystemExit, 0), None),  # --help
        (lambda task: None, None, None),
    ],
    ids=["user-error", "fault", "help", "nothing"],
)
def test_rank_0_stays_until_the_others_know_that_nothing_is_trained(given, first, second, store):
    heard: list[Any] = []
    store.other = lambda: heard.append(result(lambda: torchrun._listen(store)))
    assert result(lambda: torchrun._compose(store, given, LAUNCHER)) == first
    assert heard == [second]
    assert store.asked in (2, 3)


def test_rank_0_sends_the_run_and_does_not_wait(store, tmp_path):
    """The others may need long until they see it, and rank 0 trains with them."""
    run = torchrun._compose(store, composing, LAUNCHER)
    assert run is not None
    assert run.config_path == tmp_path / "config.yaml"
    assert store.asked == 0
    assert torchrun._listen(store) == tmp_path / "config.yaml"


def test_rank_0_does_not_wait_forever_for_ranks_that_are_gone(store, monkeypatch):
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        assert now[0] < 20, "it waits forever"

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(torchrun, "time", clock)
    assert torchrun._compose(store, lambda task: None, LAUNCHER) is None
    assert now[0] == pytest.approx(10.0, abs=0.1)


@pytest.mark.parametrize(("code", "again"), [(REQUEUE, False), (DATA, False), (FAILED, True)])
def test_restart_continues_the_same_run_and_repeats_no_refusal(
    code, again, store, tmp_path, monkeypatch
):
    torchrun._compose(store, composing, LAUNCHER)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(torchrun, "_wait_until_heard", lambda store: None)
    write_outcome(tmp_path, code, "so it ended")
    named: list[Any] = []
    monkeypatch.setattr(torchrun, "check", named.append)
    found = result(lambda: torchrun._compose(store, composing, LAUNCHER))
    assert (found == (RunFailed, code)) != again
    names = [composed.settings["run"]["name"] for composed in named]
    assert names == ([os.path.relpath(tmp_path, "runs")] if again else [])


def test_restarted_rank_reads_no_message_of_the_start_before(store, monkeypatch):
    """torchrun's store outlives the ranks that it starts again."""
    torchrun._compose(store, composing, LAUNCHER)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(UserError, match="rank 0 sent nothing for 1800 seconds"):
        torchrun._listen(store)
    torchrun._compose(store, composing, LAUNCHER)
    assert torchrun._listen(store) is not None


def test_other_rank_waits_until_the_config_is_visible(store, tmp_path, monkeypatch):
    path: Path = tmp_path / "late" / "config.yaml"
    store.set(torchrun._key(), json.dumps({"code": 0, "config": str(path)}))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] == 50.0:
            path.parent.mkdir()
            path.touch()

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(torchrun, "time", clock)
    assert torchrun._listen(store) == path
    path.unlink()
    with pytest.raises(UserError, match=r"config\.yaml, which rank 0 wrote, is not visible on "):
        torchrun._listen(store)
    assert now[0] == pytest.approx(50.0 + torchrun.SECONDS_TO_SEE, abs=1.0)


@pytest.mark.parametrize("code", [0, DATA, REQUEUE])
def test_rank_0_exits_with_the_code_of_the_outcome(code, store, monkeypatch, capsys, caplog):
    ended = Outcome(code, "how it ended")
    monkeypatch.setattr(torchrun.ExistingRanks, "start", lambda self, run: ended)
    with pytest.raises(Exited, match=f"^{code}$"):
        train_as_rank(composing, [])
    assert ("how it ended" in capsys.readouterr().out) == (code == 0)
    assert ("how it ended" in caplog.text) == (code != 0)


@pytest.mark.parametrize("given", [True, False])
def test_other_rank_trains_what_rank_0_sent(given, store, tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    store.set(torchrun._key(), json.dumps({"code": 0, "config": str(path) if given else None}))
    monkeypatch.setenv("RANK", "1")
    trained: list[Path] = []

    def train(config_path: Path) -> int:
        trained.append(config_path)
        return DATA

    monkeypatch.setattr(torchrun, "_train", train)
    if given:
        with pytest.raises(Exited, match=f"^{DATA}$"):
            train_as_rank(failing(AssertionError("composed on rank 1")), [])
        assert trained == [path]
    else:
        train_as_rank(failing(AssertionError("composed on rank 1")), [])
        assert trained == []


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_train_as_rank_refuses_both_spellings_of_a_sweep(flag, rank, store, monkeypatch, caplog):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(RunFailed) as refused:
        train_as_rank(failing(AssertionError("composed")), ["seed=1,2", flag])
    assert refused.value.code == CONFIG
    assert ("outside of torchrun" in caplog.text) == (rank == "0")


@pytest.mark.parametrize(
    ("agent", "rank", "hosts"),
    [("True", "0", False), ("True", "1", False), (None, "0", True), (None, "1", False)],
)
def test_only_rank_0_without_an_agent_hosts_the_store(agent, rank, hosts, monkeypatch):
    values = {"MASTER_ADDR": "here", "MASTER_PORT": "1234", "RANK": rank}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    if agent is None:
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    else:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    made: list[tuple] = []
    monkeypatch.setattr(dist, "TCPStore", lambda *place, **named: made.append((place, named)))
    torchrun._store()
    ((place, named),) = made
    assert place == ("here", 1234)
    assert named["is_master"] is hosts
    assert named["wait_for_workers"] is False  # the others come when rank 0 composes
