"""Which steps are refused, and what is done about them; without a model."""

import math
import random

import pytest

from mlm.health.guard import ENOUGH, NEAR, WINDOW, Guard, Median, Remedy


def warmed_up(spike: float = 10.0, rollbacks: int = 4, steps: int = WINDOW) -> Guard:
    """A guard that has seen steps with a loss of about 6 and a gradient norm of about 1."""
    guard, noise = Guard(spike, rollbacks), random.Random(1)
    for step in range(steps):
        guard.applied(step, 6.0 + noise.gauss(0, 0.05), math.exp(noise.gauss(0, 0.2)))
    return guard


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spike", [0.0, 10.0])
def test_guard_refuses_non_finite_numbers_from_the_first_step(wrong, spike):
    for guard in (Guard(spike, 4), warmed_up(spike)):
        assert guard.fault(wrong, 1.0) == f"loss {wrong} is not finite"
        assert guard.fault(6.0, wrong) == f"gradient norm {wrong} is not finite"
        assert not guard.judge(wrong, 1.0)
        assert guard.judge(6.0, 1.0)


def test_guard_refuses_a_spike_and_reports_median_and_limit():
    guard = warmed_up()
    assert guard.judge(11.0, 900.0)
    why = guard.fault(13.0, 1.0)
    assert why is not None
    assert why.startswith("loss 13 is far above 6.0")
    assert "the median of the last 64 steps (guard.spike=10 allows 12.1" in why
    assert "gradient norm 3000 is far above" in str(guard.fault(6.0, 3000.0))
    assert guard.judge(0.01, 0.0001)  # low values are allowed
    assert guard.judge(0.0, 0.0)


def test_median_allows_larger_values_in_a_noisy_run():
    quiet, noisy, noise = Median("loss", 0.07), Median("loss", 0.07), random.Random(2)
    for _ in range(WINDOW):
        quiet.add(2.0)
        noisy.add(math.exp(noise.gauss(math.log(2.0), 0.3)))
    assert quiet.fault(5.0, 10.0) is not None
    assert noisy.fault(5.0, 10.0) is None
    assert noisy.fault(400.0, 10.0) is not None


def test_guard_refuses_no_spike_without_a_median_or_when_off():
    assert warmed_up(steps=ENOUGH - 1).judge(60.0, 1e9)
    assert not warmed_up(steps=ENOUGH).judge(60.0, 1.0)
    assert warmed_up(spike=0.0).judge(60.0, 1e9)


def test_guard_allows_a_falling_loss_and_a_slow_rise():
    guard = Guard(10.0, 4)
    for step in range(2000):
        loss, norm = 2 + 10 * math.exp(-step / 100), 5.0 if step < 300 else 0.5
        assert guard.judge(loss, norm), step
        guard.applied(step, loss, norm)
    for step in range(500):
        loss = 2 + step / 100
        assert guard.judge(loss, 0.5), step
        guard.applied(2000 + step, loss, 0.5)


def test_guard_keeps_repeated_steps_out_of_its_medians():
    """Otherwise a step could be refused the first time and applied the second."""
    guard = warmed_up()
    before = guard.fault(13.0, 1.0)
    for step in range(40, WINDOW):
        guard.applied(step, 1.0, 1.0)
    assert guard.fault(13.0, 1.0) == before
    guard.applied(WINDOW, 1.0, 1.0)
    assert guard.fault(13.0, 1.0) != before


def test_remedy_rolls_back_and_then_skips_the_step():
    guard = warmed_up()
    assert guard.remedy(100) == Remedy(back=True)
    assert guard.remedy(100) == Remedy(skip=range(100, 101))


def test_remedy_rolls_back_again_for_another_step():
    guard = warmed_up()
    assert guard.remedy(100) == Remedy(back=True)
    assert guard.remedy(140) == Remedy(back=True)
    assert guard.remedy(140) == Remedy(skip=range(140, 141))


def test_remedy_skips_more_steps_for_faults_after_a_skipped_one():
    guard, remedies = warmed_up(), []
    for step in (100, 100, 101, 102, 103):
        remedy = guard.remedy(step)
        guard.skipped |= set(remedy.skip)
        remedies.append((remedy.back, sorted(guard.skipped)))
    assert remedies == [
        (True, []),
        (False, [100]),
        (True, list(range(99, 102))),
        (True, list(range(96, 103))),
        (True, list(range(89, 104))),
    ]
    assert guard.remedy(104) == Remedy()  # after four rollbacks to one checkpoint
    guard.saved(105)
    assert guard.remedy(103 + NEAR).skip
    assert guard.remedy(104 + NEAR) == Remedy(back=True)  # far enough to have another cause


def test_remedy_skips_nothing_before_the_first_step():
    guard = warmed_up()
    guard.skipped |= {0, 1}
    assert guard.remedy(2) == Remedy(back=True, skip=range(3))


def test_remedy_rolls_back_and_skips_at_once_after_a_skipped_step():
    """Also for a step that has caused a rollback before."""
    guard = warmed_up()
    assert guard.remedy(101) == Remedy(back=True)
    assert guard.remedy(100) == Remedy(back=True)
    assert guard.remedy(100) == Remedy(skip=range(100, 101))
    guard.skipped.add(100)
    assert guard.remedy(101) == Remedy(back=True, skip=range(99, 102))


def test_guard_resets_its_rollback_count_at_a_new_checkpoint():
    guard = warmed_up(rollbacks=2)
    assert guard.remedy(100).back
    assert guard.remedy(150).back
    assert guard.remedy(200) == Remedy()
    guard.saved(150)  # from before the last faulty step
    assert guard.remedy(200) == Remedy()
    guard.saved(151)
    assert guard.remedy(200).back
    guard.saved(201)
    assert guard.remedy(200).back  # what was tried before the checkpoint is forgotten


def test_remedy_is_empty_without_rollbacks():
    assert warmed_up(rollbacks=0).remedy(7) == Remedy()
