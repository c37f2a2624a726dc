"""Keys, keyed weights and keyed dropout."""

import pytest
import torch

from parallel.groups import make_grid
from parallel.keys import key
from parallel.layout import Layout
from parallel.random import dropout, normal_, sharded_key
from tests.ranks import run_ranks


def test_key_is_fixed_and_distinguishes_its_parts():
    assert key(1, "mask", 7) == 4869904543347250381  # the same on every machine, for ever
    parts = [(1, 2), (12,), ("1", 2), (1, "2"), (2, 1), ("12",), (1, 2, 0)]
    assert len({key(*part) for part in parts}) == len(parts)
    assert 0 <= key("x") < 2**63


def test_normal_depends_on_seed_and_name_alone():
    first, again, other, seed = (torch.empty(64, 32) for _ in range(4))
    normal_(first, 0.02, 1, "a")
    torch.randn(5)  # the global generator is not used
    normal_(again, 0.02, 1, "a")
    normal_(other, 0.02, 1, "b")
    normal_(seed, 0.02, 2, "a")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seed)
    assert first.std().item() == pytest.approx(0.02, rel=0.05)


def test_dropout_scales_what_it_keeps_and_repeats():
    x = torch.ones(200, 500, requires_grad=True)
    y = dropout(x, 0.1, 42)
    assert torch.equal(y, dropout(x, 0.1, 42))
    assert not torch.equal(y, dropout(x, 0.1, 43))
    kept = y != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.005)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.9))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())  # the same mask in the backward pass


def sharded_keys() -> list[int | None]:
    grid = make_grid(Layout(tp=2))
    return [sharded_key(7, "attention", grid.tp), sharded_key(7, "other", grid.tp)]


@pytest.mark.ranks
def test_sharded_key_differs_between_tensor_parallel_ranks():
    first, second = run_ranks(2, sharded_keys)
    assert len({*first, *second}) == 4
    assert first[0] == sharded_key(7, "attention", None)


def test_dropout_of_probability_0_is_the_identity():
    x = torch.ones(3)
    assert dropout(x, 0.0, 1) is x
