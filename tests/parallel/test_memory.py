"""The bytes of a rank's state."""

import pytest
import torch
from torch import nn

from parallel.layout import Layout
from parallel.memory import StateBytes, state_bytes


@pytest.mark.parametrize(
    ("layout", "bytes_per_parameter"),
    [
        (Layout(), (4, 4, 8)),
        (Layout(dp=4), (4, 4, 2)),
        (Layout(dp=4, zero=2), (4, 1, 2)),
        (Layout(dp=4, zero=3), (1, 1, 2)),
        (Layout(tp=2, pp=2, dp=4), (4, 4, 2)),  # the parameters are those of a stage and slice
    ],
)
def test_state_bytes_divide_what_zero_divides(layout, bytes_per_parameter):
    weights, gradients, optimizer = (1000 * each for each in bytes_per_parameter)
    assert state_bytes(1000, layout) == StateBytes(weights, gradients, optimizer)
    rounded = state_bytes(1000, layout, weight_bytes=2)
    assert rounded == StateBytes(weights // 2, gradients, optimizer * 3 // 2)


def test_state_bytes_are_those_of_a_plain_loop():
    """One process with AdamW of torch."""
    linear = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(30)).sum().backward()
    optimizer.step()
    tensors = [t for p in linear.parameters() for t in (p, p.grad)]
    tensors += [t for s in optimizer.state.values() for n, t in s.items() if n != "step"]
    held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert held == state_bytes(620, Layout()).total


def test_state_bytes_round_up_a_share():
    assert state_bytes(3, Layout(dp=2, zero=3)).total == 6 + 6 + 12
