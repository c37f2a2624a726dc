"""Decay groups and learning-rate schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from mlm.config import OptimConfig, ScheduleConfig
from mlm.training.optimizer import decays, learning_rate, make_adamw, warmup_steps

KINDS = ("polynomial", "linear", "cosine", "wsd")


def test_matrices_decay_and_biases_and_norms_do_not():
    config = XLMRobertaXLConfig(128, 16, 1, 2, 32)
    parameters = dict(XLMRobertaXLForMaskedLM(config).named_parameters())
    for name, parameter in parameters.items():
        assert decays(name) == (parameter.dim() == 2), name
    optimizer = make_adamw(list(parameters.items()), OptimConfig(weight_decay=0.1))
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert len(first["params"]) + len(second["params"]) == len(parameters)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_without_the_fused_kernel_a_step_does_not_depend_on_the_place():
    """Tied weights have other places in each stage's part, and stay equal."""
    generator = torch.Generator().manual_seed(1)
    values, *gradients = torch.randn(4, 100, generator=generator)
    found = []
    for count in range(1, 100):
        weight = torch.nn.Parameter(values[:count].clone())
        optimizer = make_adamw([("weight", weight)], OptimConfig(), fused=False)
        for gradient in gradients:
            weight.grad = gradient[:count].clone()
            optimizer.step()
        found.append(weight.detach())
    assert all(torch.equal(found[-1][: len(part)], part) for part in found)


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 400),
    warmup=st.none() | st.integers(0, 500),
    end=st.floats(0, 1e-4),
)
def test_rates_rise_to_the_peak_and_fall_to_the_end(kind, steps, warmup, end):
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, end_lr=end)
    rates = [learning_rate(step, steps, 1e-3, schedule) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-15 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))


def test_linear_warm_up_against_torchs_own_schedule():
    """LinearLR over the warm-up, counted from 1."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    schedule = ScheduleConfig(kind="linear", warmup_steps=10)
    for step in range(10):
        assert learning_rate(step, 100, 1e-3, schedule) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("kind", "middle"), [("polynomial", 0.25), ("linear", 0.5), ("cosine", 0.5), ("wsd", 1.0)]
)
def test_half_way_down(kind, middle):
    schedule = ScheduleConfig(kind=kind, warmup_steps=1, power=2.0)
    assert learning_rate(50, 99, 1.0, schedule) == pytest.approx(middle, rel=0.03)


def test_lengths_that_are_not_given_are_shares_of_the_run():
    assert warmup_steps(1000, ScheduleConfig()) == 60
    rates = [learning_rate(step, 1000, 1.0, ScheduleConfig(kind="wsd")) for step in range(1000)]
    assert rates.index(1.0) == 59
    assert rates[59:800] == [1.0] * 741
    assert rates[800] < 1.0


def test_wsd_stays_at_the_peak_until_its_last_phase():
    schedule = ScheduleConfig(kind="wsd", warmup_steps=10, decay_steps=20)
    rates = [learning_rate(step, 100, 1.0, schedule) for step in range(100)]
    assert rates[9:80] == [1.0] * 71
    assert rates[81] < 1.0
    assert rates[99] == pytest.approx(1 / 21)
