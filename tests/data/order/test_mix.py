"""How often languages are drawn: weights, a schedule of alpha, and limits to repetition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.config import TrainConfig, as_dict, load
from mlm.data.checks import sample_order
from mlm.data.index import Index
from mlm.data.order.mix import ROUND, STEPS, Mix, limits, shares
from mlm.data.order.order import SampleOrder
from mlm.errors import UserError
from tests.text_fixtures import shards_folder
from tests.training_fixtures import config

ALPHA = [(0, 0.3)]


def exact(tokens, alpha, weights=None):
    parts = np.asarray(tokens, float) ** alpha * (1.0 if weights is None else np.array(weights))
    return parts / parts.sum() * ROUND


def test_mix_without_schedule_has_constant_quotas():
    mix = Mix([1000, 10, 500], ALPHA)
    assert len(mix.phases) == 1
    assert mix.samples is None
    assert np.abs(mix.quotas(0) - exact([1000, 10, 500], 0.3)).max() < 1
    assert mix.quotas(10**12) is mix.quotas(0)
    assert np.array_equal(mix.before(10**9), 10**9 * mix.quotas(3))


def test_mix_multiplies_by_weights_and_skips_weight_0():
    mix = Mix([1000, 1000, 1000], ALPHA, [2.0, 1.0, 0.0])
    assert mix.quotas(5).tolist() == [43691, 21845, 0]


def test_mix_interpolates_alpha_between_points():
    tokens, points = [10**9, 10**5], [(0, 0.3), (100 * ROUND, 0.3), (164 * ROUND, 0.7)]
    mix = Mix(tokens, points)
    assert len(mix.phases) == 2 + STEPS - 1
    found = [mix.quotas(round)[1] for round in range(200)]
    assert found[:101] == [shares(np.array(tokens, float) ** 0.3)[1]] * 101
    assert found[164:] == [shares(np.array(tokens, float) ** 0.7)[1]] * 36
    assert found == sorted(found, reverse=True)
    middle = exact(tokens, 0.5)[1]
    assert found[132] == pytest.approx(middle, rel=0.05)
    assert np.array_equal(mix.before(150), sum(mix.quotas(round) for round in range(150)))


def test_mix_starts_a_line_at_the_next_round():
    mix = Mix([10**9, 10**5], [(0, 0.3), (10 * ROUND + 5, 0.3), (20 * ROUND, 0.7)])
    same = [np.array_equal(mix.quotas(round), mix.quotas(0)) for round in range(13)]
    assert same == [True] * 12 + [False]


def test_mix_applies_a_schedule_shorter_than_a_round_at_the_next_one():
    mix = Mix([10**9, 10**5], [(0, 0.3), (10, 0.7), (20, 1.0)])
    assert [phase.first for phase in mix.phases] == [0, 1]
    assert np.array_equal(mix.quotas(1), Mix([10**9, 10**5], [(0, 1.0)]).quotas(0))


def test_mix_stops_a_language_at_its_limit():
    """The first reaches its limit after 2.5 rounds, and the others get its share."""
    mix = Mix([100, 100, 100], ALPHA, max_samples=[60_000, None, None])
    rounds = [mix.quotas(round) for round in range(5)]
    assert [int(quotas[0]) for quotas in rounds] == [21846, 21846, 16308, 0, 0]
    assert rounds[2].tolist() == [16308, 24614, 24614]
    assert rounds[3].tolist() == [0, 32768, 32768]
    assert all(quotas.sum() == ROUND for quotas in rounds)
    assert int(mix.before(10**9)[0]) == 60_000


def test_mix_ends_where_all_languages_reach_their_limits():
    mix = Mix([100, 100], ALPHA, max_samples=[100_000, 30_000])
    assert mix.samples == 130_000
    assert mix.before(10).tolist() == [100_000, 30_000]
    order = SampleOrder([100_000 * 7, 30_000 * 7], ["a", "b"], 8, mix, 1)
    languages, blocks = order.samples(np.arange(130_000))
    for language, count in enumerate((100_000, 30_000)):
        assert np.array_equal(np.sort(blocks[languages == language]), np.arange(count))
    assert order.samples_per_language(130_000).tolist() == [100_000, 30_000]


@given(data=st.data(), count=st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_mix_fills_rounds_and_holds_limits(data, count):
    """Rounds are full, limits hold, and `before` is the sum of all earlier rounds."""
    tokens = data.draw(st.lists(st.integers(1, 10**9), min_size=count, max_size=count))
    weights = data.draw(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=count, max_size=count)
    )
    most = data.draw(
        st.lists(st.none() | st.integers(0, 6 * ROUND), min_size=count, max_size=count)
    )
    steps = sorted(data.draw(st.sets(st.integers(1, 12 * ROUND), max_size=3)))
    points = [(0, 0.3), *((step, data.draw(st.sampled_from([0.0, 0.5, 1.0]))) for step in steps)]
    if not any(weights):
        weights[0] = 1.0
    mix = Mix(tokens, points, weights, most)
    so_far = np.zeros(count, np.int64)
    for round in range(60):
        quotas = mix.quotas(round)
        assert np.array_equal(mix.before(round), so_far)
        assert (quotas >= 0).all()
        assert not quotas[np.array(weights) == 0].any()
        so_far = so_far + quotas
        for had, limit in zip(so_far.tolist(), most, strict=True):
            assert limit is None or had <= limit
        if mix.samples is None:
            assert quotas.sum() == ROUND
        else:
            assert so_far.sum() == min(mix.samples, (round + 1) * ROUND)
    if mix.samples is not None:
        wanted = [limit for limit, weight in zip(most, weights, strict=True) if weight]
        assert mix.samples == sum(wanted)


def test_limits_are_epochs_of_blocks():
    assert limits([10, 7, 100], ["a", "b", "c"], 1.5, {"c": 0.1}) == [15, 10, 10]
    assert limits([10, 7], ["a", "b"], None, {"b": 4}) == [None, 28]


def test_mix_costs_the_same_a_million_rounds_away():
    mix = Mix([10**9] * 100, ALPHA, max_samples=[10**13 + n for n in range(100)])
    assert len(mix.phases) <= 300
    assert mix.quotas(10**6).sum() == ROUND


def mixed(**data) -> TrainConfig:
    given = as_dict(config())
    given["data"] |= data
    return load(TrainConfig, given)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"weights": {"xx": 1.0}},
            "data.weights has xx, which is not a language of .*; they are el, en",
        ),
        ({"max_epochs_of": {"xx": 1.0}}, "data.max_epochs_of has xx, which is not a language"),
        (
            {"weights": {"el": -1.0}},
            "data.weights.el=-1.0 is below 0; give 0 or more",
        ),
        ({"weights": dict.fromkeys(("el", "en", "ja", "sw"), 0.0)}, "is 0 for all languages"),
        ({"max_epochs": 0.0}, "data.max_epochs=0.0 is not above 0; give"),
        (
            {"max_epochs_of": {"el": -2.0}},
            "data.max_epochs_of.el=-2.0 is not above 0",
        ),
        ({"max_epochs": 1e-9}, "and data.max_epochs .*allow 0; choose more epochs"),
        (
            {"max_epochs": 0.01},
            "train.steps=6 takes 48 samples, and data.max_epochs .*allow [0-9]+;",
        ),
        (
            {"alpha_schedule": ((5, 0.3), (5, 0.7))},
            "has step 5 after step 5; give .step, alpha. pa",
        ),
        ({"alpha_schedule": ((0, 0.3),)}, "data.alpha_schedule has step 0 after step 0"),
        ({"alpha_schedule": ((9, 1.3),)}, "data.alpha_schedule.0.1=1.3 is not at most 1"),
    ],
)
def test_sample_order_reports_mistakes_in_one_sentence(data, sentence):
    with pytest.raises(UserError, match=sentence):
        sample_order(mixed(**data), Index.open(shards_folder()))


def test_sample_order_has_the_mix_of_the_config():
    index = Index.open(shards_folder())
    order = sample_order(mixed(weights={"en": 0.0}, alpha_schedule=((ROUND // 8, 1.0),)), index)
    tokens = np.array(index.train_tokens, float)
    assert order.mix.quotas(0)[index.languages.index("en")] == 0
    tokens[index.languages.index("en")] = 0
    assert np.abs(order.mix.quotas(1) - exact(tokens, 1.0)).max() < 1
    capped = sample_order(mixed(max_epochs_of={"el": 2.0}), index)
    place = index.languages.index("el")
    assert int(capped.mix.before(10**6)[place]) == 2 * int(capped.blocks[place])
