"""Replicas that drift: a flipped bit is found and reported with its tensor, axes and ranks."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlm.model.masked_lm import masked_lm_layers
from mlm.training.optimizer import make_adamw
from parallel.engine.build import build_engine
from parallel.engine.interface import Engine, EngineSettings
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.replicas import (
    CHUNK,
    Copy,
    Difference,
    _weights,
    check_batches,
    check_replicas,
    fingerprint,
    first_difference,
)
from tests.parallel.engine.test_layouts import CONFIG, MASKED, MICRO, OPTIM, SEQ_LEN, global_batch
from tests.ranks import run_ranks

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool]
WORDS = "roberta.embeddings.word_embeddings.weight"
NORM = "roberta.encoder.layer.1.attention.self_attn_layer_norm.weight"
QUERY = "roberta.encoder.layer.1.attention.self.query.weight"


def random_bits(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (count * size,), dtype=torch.uint8, generator=generator)
    return (raw & 1).bool() if dtype is torch.bool else raw.view(dtype)


def flip(tensor: Tensor, bit: int) -> None:
    """Flips a bit, counted from the first one of the first element."""
    tensor.detach().view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8


@given(st.sampled_from(DTYPES), st.integers(1, 40), st.integers(0, 2**30), st.data())
def test_fingerprint_changes_with_any_flipped_bit(dtype, count, seed, data):
    tensor = random_bits(dtype, count, seed)
    before = fingerprint(tensor).item()
    step = 8 if dtype is torch.bool else 1  # a bool has one bit
    bits = tensor.numel() * tensor.element_size() * 8 // step
    bit = data.draw(st.integers(0, bits - 1)) * step
    flip(tensor, bit)
    assert fingerprint(tensor).item() != before
    flip(tensor, bit)
    assert fingerprint(tensor).item() == before


def test_fingerprint_weights_are_odd_and_differ_in_their_last_33_bits():
    """So a changed word, or two swapped ones, always change the sum modulo 2**64: they add a
    multiple, by less than 2**32, of a weight or of the difference of two weights."""
    weights = _weights(torch.device("cpu"))
    assert len(weights) == CHUNK
    assert (weights & 1).all()
    assert len((weights & (2**33 - 1)).unique()) == CHUNK


@given(st.sampled_from(DTYPES[:5]), st.integers(2, 40), st.integers(0, 2**30), st.data())
def test_fingerprint_depends_on_the_order(dtype, count, seed, data):
    tensor = random_bits(dtype, count, seed)
    other = tensor[torch.tensor(data.draw(st.permutations(range(count))))]
    same = tensor.view(torch.uint8).equal(other.view(torch.uint8))
    assert (fingerprint(tensor).item() == fingerprint(other).item()) == same


@pytest.mark.parametrize("dtype", DTYPES[:5])
def test_fingerprint_covers_chunks_and_the_remainder(dtype):
    tensor = random_bits(dtype, 2 * CHUNK + 5, 1)
    found = {fingerprint(tensor).item()}
    size = tensor.element_size() * 8
    elements = (0, CHUNK // 2, CHUNK - 1, CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 4)
    for element in elements:
        flip(tensor, element * size + size - 1)
        found.add(fingerprint(tensor).item())
    found.add(fingerprint(torch.cat([tensor[CHUNK:], tensor[:CHUNK]])).item())
    assert len(found) == len(elements) + 2


def test_fingerprint_sees_signs_and_regular_changes():
    """Sums with simpler weights would miss changed signs, and second and third differences."""
    ones = torch.ones(64)
    found = {fingerprint(ones).item()}
    for places in ([3, 4], [3, 5], [3, 35], range(64)):
        changed = ones.clone()
        changed[list(places)] *= -1
        found.add(fingerprint(changed).item())
    for change in ([1, -2, 1], [1, -3, 3, -1], [1, -4, 6, -4, 1]):
        words = torch.zeros(64, dtype=torch.int32)
        words[8 : 8 + len(change)] = torch.tensor(change, dtype=torch.int32)
        found.add(fingerprint(words).item())
    assert len(found) == 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprint_depends_on_values_and_not_on_memory_layout(dtype):
    tensor = random_bits(dtype, 32, 2)
    inside = torch.cat([tensor[:1], tensor])[1:]  # aligned to no more than an element
    assert fingerprint(inside).item() == fingerprint(tensor).item()
    turned = tensor.view(4, 8).t()
    assert fingerprint(turned).item() == fingerprint(turned.contiguous()).item()
    assert fingerprint(tensor[0]).item() == fingerprint(tensor[:1]).item()
    empty, zero = tensor[:0], torch.zeros(1, dtype=dtype)
    found = [fingerprint(x).item() for x in (empty, zero, torch.zeros(2, dtype=dtype))]
    assert len(set(found)) == 3


def test_fingerprint_is_the_same_on_every_machine():
    assert fingerprint(torch.arange(5)).item() == 7318935309098926009


def all_agree(layout: Layout, axes: dict[str, tuple[str, ...]]) -> list[list[Copy]]:
    """The tensors of each rank: equal along their axes, on every stage, or on the first and last
    where stages share one. Tensors that may differ have different fingerprints."""
    ranks = []
    for rank in range(layout.world_size):
        t, p, d = layout.coordinates(rank)
        copies = []
        for name, along in axes.items():
            place = [index for axis, index in (("tensor", t), ("data", d)) if axis not in along]
            if "pipeline" not in along or p in (0, layout.pp - 1):
                stage = [] if "pipeline" in along else [p]
                copies.append(Copy(name, along, hash((name, *place, *stage)) % 2**60))
        ranks.append(copies)
    return ranks


LAYOUTS = st.builds(Layout, *[st.integers(1, 3)] * 3)
AXES = {
    "tied": ("pipeline", "data"),
    "whole": ("tensor", "data"),
    "sharded": ("data",),
    "part": ("tensor",),
}


@given(LAYOUTS, st.data())
@settings(max_examples=200)
def test_first_difference_names_the_tensor_and_its_ranks(layout, data):
    ranks = all_agree(layout, AXES)
    hosts = [f"host{rank}" for rank in range(layout.world_size)]
    assert first_difference(layout, ranks, hosts) is None
    rank = data.draw(st.integers(0, layout.world_size - 1))
    number = data.draw(st.integers(0, len(ranks[rank]) - 1))
    copy = ranks[rank][number]
    holders = [other for other in range(layout.world_size) if copy in ranks[other]]
    for later in range(number, len(ranks[rank])):  # only the first is named
        ranks[rank][later] = replace(ranks[rank][later], fingerprint=-1)
    found = first_difference(layout, ranks, hosts)
    if len(holders) == 1:
        assert found is None or found.name != copy.name
    elif len(holders) == 2:
        assert found is not None
        assert (found.name, found.ranks, found.others) == (copy.name, tuple(holders), ())
    else:
        assert found is not None
        assert (found.name, found.ranks, found.hosts) == (copy.name, (rank,), (hosts[rank],))
        assert found.others == tuple(other for other in holders if other != rank)


def test_first_difference_is_the_first_of_the_model_on_any_rank():
    layout = Layout(tp=2, dp=2)
    ranks = all_agree(layout, AXES)
    for rank, name in ((0, "part"), (3, "sharded")):
        number = [copy.name for copy in ranks[rank]].index(name)
        ranks[rank][number] = replace(ranks[rank][number], fingerprint=-1)
    found = first_difference(layout, ranks, ["a", "a", "b", "b"])
    assert found == Difference("sharded", ("data",), (1, 3), (), ("a", "b"))


def engine_of(degrees: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Engine:
    layout = Layout(*degrees)
    grid = make_grid(layout)
    layers = masked_lm_layers(CONFIG, group=grid.tp, seed=1, seq_len=SEQ_LEN, masked=MASKED)
    settings = EngineSettings(MICRO, 1, OPTIM.clip, dtype)
    return build_engine(layers, grid, lambda named: make_adamw(named, OPTIM), settings)


def after_flips(degrees: tuple[int, int, int, int], flips: list[tuple[int, str]]) -> list:
    """What a check finds while one bit of one weight is flipped on one rank."""
    engine = engine_of(degrees)
    found = []
    for rank, name in flips:
        assert check_replicas(engine) is None
        parameter: Any = dict(engine.named_parameters()).get(name)
        if engine.grid.rank == rank:
            flip(getattr(parameter, "ds_tensor", parameter), 77)
        found.append(check_replicas(engine))
        if engine.grid.rank == rank:
            flip(getattr(parameter, "ds_tensor", parameter), 77)
    return [d and (d.name, d.axes, d.ranks, d.others) for d in found]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("degrees", "flips"),
    [
        pytest.param((1, 1, 2, 1), {(1, NORM): (("data",), (0, 1), ())}, marks=pytest.mark.slow),
        pytest.param((1, 1, 3, 1), {(1, QUERY): (("data",), (1,), (0, 2))}, marks=pytest.mark.slow),
        pytest.param(
            (2, 1, 1, 1),
            {(1, NORM): (("tensor",), (0, 1), ()), (1, QUERY): None},
            marks=pytest.mark.slow,
        ),
        ((1, 2, 1, 1), {(1, WORDS): (("pipeline",), (0, 1), ()), (0, NORM): None}),
        (
            (2, 1, 2, 1),
            {
                (3, NORM): (("tensor", "data"), (3,), (0, 1, 2)),
                (2, QUERY): (("data",), (0, 2), ()),
            },
        ),
        pytest.param(
            (1, 2, 2, 1),
            {(2, WORDS): (("pipeline", "data"), (2,), (0, 1, 3))},
            marks=pytest.mark.slow,
        ),
        pytest.param((1, 1, 2, 2), {(0, NORM): (("data",), (0, 1), ())}, marks=pytest.mark.slow),
        ((2, 1, 2, 3), {(2, NORM): (("tensor",), (2, 3), ()), (2, QUERY): None}),
        pytest.param((1, 1, 2, 3), {(1, NORM): None}, marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_check_replicas_traces_a_flipped_bit_of_a_weight(degrees, flips):
    """None: no other rank has a copy of that tensor."""
    expected = [row and (name, *row) for (_, name), row in flips.items()]
    results = run_ranks(degrees[0] * degrees[1] * degrees[2], after_flips, degrees, list(flips))
    assert results == [expected] * len(results)


def with_a_drifting_master(dtype: torch.dtype) -> list:
    """One of two tensor-parallel ranks changes its fp32 master of a norm, and both train on."""
    engine = engine_of((2, 1, 1, 1), dtype)
    slip = 0.1 * engine.grid.tp_rank

    def slipped(name: str, parameter: Tensor) -> Tensor | None:
        return parameter.detach() + slip if name == NORM else None

    engine.write_masters(slipped)
    found = [check_replicas(engine)]
    engine.train_batch(global_batch(0)[:1], 1e-3)
    return [*found, check_replicas(engine)]


@pytest.mark.ranks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_check_replicas_finds_a_drift_of_the_optimizer(dtype):
    """In fp32, where weights are their own masters, at once; else in the weights of the step."""
    before, after = run_ranks(2, with_a_drifting_master, dtype)[0]
    assert (before is None) == (dtype == torch.bfloat16)
    first = after if before is None else before  # later steps spread it to other weights
    assert (first.name, first.axes, first.ranks) == (NORM, ("tensor",), (0, 1))


def with_filled_padding() -> list:
    """Fills the padding of partitions, which ZeRO-3 over three ranks gives most tensors."""
    engine = engine_of((2, 1, 3, 3))
    padded = 0
    for _, parameter in engine.named_parameters():
        sharded: Any = parameter
        part, dp_rank = sharded.ds_tensor, engine.grid.dp_rank
        pad = part.detach()[max(0, sharded.ds_numel - dp_rank * part.numel()) :]
        pad.fill_(engine.grid.rank)
        padded += pad.numel()
    return [padded, check_replicas(engine)]


@pytest.mark.ranks
@pytest.mark.slow
def test_check_replicas_ignores_the_padding_of_partitions():
    results = run_ranks(6, with_filled_padding)
    assert all(padded > 0 for padded, _ in results[4:])  # the last data rank's
    assert [found for _, found in results] == [None] * 6


def fed_with(degrees: tuple[int, int, int], odd: int) -> Difference | None:
    grid = make_grid(Layout(*degrees))
    ids = torch.arange(24).view(2, 12) + 100 * grid.dp_rank
    mask = ids % 3 == 0
    if grid.rank == odd:
        mask[1, 4] ^= True
    return check_batches(grid, torch.device("cpu"), [("ids", ids), ("mask", mask)])


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ((2, 1, 2), ("mask", ("tensor",), (2, 3), ())),
        ((2, 2, 1), ("mask", ("tensor", "pipeline"), (3,), (0, 1, 2))),
        ((1, 2, 2), ("mask", ("pipeline",), (1, 3), ())),
        ((1, 1, 4), None),  # each data rank has its own batches
    ],
)
def test_check_batches_traces_a_differing_batch(degrees, expected):
    for found in run_ranks(4, fed_with, degrees, 3):
        assert (found and (found.name, found.axes, found.ranks, found.others)) == expected
    assert run_ranks(4, fed_with, degrees, -1) == [None] * 4
