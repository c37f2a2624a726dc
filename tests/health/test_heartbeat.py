"""Heartbeats, and the search for the rank that the others wait for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm.health import heartbeat
from mlm.health.heartbeat import BYTES, Beat, RankState, culprit, read, write

SILENCE = 5.0


def beat(**values) -> Beat:
    usual = {
        "number": 7,
        "phases_begun": 20,
        "collectives_begun": 90,
        "phase": "step",
        "collective": "all_reduce",
    }
    usual |= {"idle_seconds": 10.0, "dumped": False, "host": "node", "process": 1}
    return Beat(**usual | values)


def states(*beats: Beat | None, silent=(), stages=()) -> list[RankState]:
    return [
        RankState(rank, stages[rank] if stages else 0, 9.0 if rank in silent else 0.0, one)
        for rank, one in enumerate(beats)
    ]


W = beat()  # waiting in an all-reduce


@pytest.mark.parametrize(
    ("ranks", "rank", "text"),
    [
        # A process that is not running comes first.
        (states(W, beat(collective=""), W, silent=(2,)), 2, "stopped, dead"),
        (states(W, W, None), 2, "stopped, dead"),
        (states(W, W, W, silent=(1, 2)), 1, "; so is rank 2"),
        (states(W, W, W, W, silent=(1, 2, 3)), 1, "; so are ranks 2, 3"),
        # A rank outside collectives holds up those inside.
        (states(W, beat(collective="", phase="data", phases_begun=19)), 1, "in phase data"),
        (states(W, beat(collective="", phase="data", phases_begun=21)), 1, "in phase data"),
        (
            states(W, beat(collective="recv", phases_begun=18), beat(collective="")),
            2,
            "in no collective",
        ),
        # Of several, the one furthest behind: in phases, then in calls of its stage.
        (states(beat(collective=""), beat(collective="", phases_begun=19)), 1, "in no collective"),
        (
            states(beat(collective=""), beat(collective="", collectives_begun=89)),
            1,
            "in no collective",
        ),
        (
            states(
                beat(collective="", collectives_begun=500),
                beat(collective="", collectives_begun=499),
                beat(collective="", collectives_begun=40),
                beat(collective="", collectives_begun=40),
                stages=(0, 0, 1, 1),
            ),
            1,
            "in no collective",
        ),
        # All wait: the one furthest behind, else the one that arrived last.
        (
            states(W, W, beat(collectives_begun=89, collective="broadcast")),
            2,
            "it waits in broadcast",
        ),
        (states(W, W, beat(idle_seconds=8.0)), 2, "check the network"),
        (states(beat(collective="", phase="evaluate")), 0, "in phase evaluate"),
    ],
)
def test_culprit_is_the_rank_that_the_others_wait_for(ranks, rank, text):
    found, why = culprit(ranks, SILENCE)
    assert found == rank
    assert text in why


beats = st.builds(
    beat,
    phases_begun=st.integers(0, 3),
    collectives_begun=st.integers(0, 3),
    collective=st.sampled_from(["", "send", "barrier"]),
    idle_seconds=st.floats(0, 20),
)


@given(st.lists(st.tuples(st.none() | beats, st.floats(0, 10), st.integers(0, 1)), min_size=1))
def test_culprit_prefers_silent_ranks_then_ranks_outside_collectives(rows):
    ranks = [RankState(rank, stage, silent, one) for rank, (one, silent, stage) in enumerate(rows)]
    rank, _ = culprit(ranks, SILENCE)

    def kind(one: RankState) -> int:
        if one.beat is None or one.silent_seconds > SILENCE:
            return 0
        return 2 if one.beat.collective else 1

    assert kind(ranks[rank]) == min(kind(one) for one in ranks)


def test_heartbeat_is_overwritten_in_place(tmp_path):
    path = heartbeat.path_of(tmp_path, 3)
    path.parent.mkdir()
    assert path.name == "rank-00003"
    assert read(path) is None
    long = beat(
        host="x" * 64, number=10**9, collectives_begun=10**12, collective="all_gather_into_tensor"
    )
    for one in (long, beat()):
        write(path, one)
        assert read(path) == one
        assert path.stat().st_size == BYTES
    path.write_text(json.dumps({"number": 1}))
    assert read(path) is None
    path.write_text('{"number"')
    assert read(path) is None
