"""Layouts: the rank order, and what they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.layout import Layout, LayoutError

degree = st.integers(1, 6)


@given(tp=degree, pp=degree, dp=degree)
def test_layout_maps_ranks_to_coordinates_one_to_one(tp, pp, dp):
    layout = Layout(tp=tp, pp=pp, dp=dp)
    coordinates = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert len(set(coordinates)) == layout.world_size
    assert [layout.rank(*found) for found in coordinates] == list(range(layout.world_size))


def test_layout_orders_ranks_as_deepspeed_does():
    """Groups are made from our coordinates and used together with DeepSpeed's own."""
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    layout = Layout(tp=2, pp=3, dp=2)
    topology = PipeModelDataParallelTopology(num_pp=3, num_mp=2, num_dp=2)
    for rank in range(layout.world_size):
        theirs = topology.get_coord(rank)
        assert layout.coordinates(rank) == (theirs.model, theirs.pipe, theirs.data)


@pytest.mark.parametrize(
    ("degrees", "sentence"),
    [
        ({"tp": 0}, "parallel.tp=0 is below 1"),
        ({"zero": 4}, "choose 1, 2 or 3"),
        ({"pp": 2, "zero": 3}, "choose parallel.zero=1, or parallel.pp=1"),
    ],
)
def test_layout_refuses_invalid_degrees(degrees, sentence):
    with pytest.raises(LayoutError, match=sentence):
        Layout(**degrees)


@pytest.mark.parametrize(
    ("degrees", "sentence"),
    [
        ({"tp": 4}, "num_attention_heads=6 is not a multiple of parallel.tp=4.*from 1, 2, 3, 6"),
        ({"tp": 6, "shape": (6, 64, 4)}, "intermediate_size=64.*parallel.tp=6.*from 1, 2$"),
        ({"pp": 5}, "parallel.pp=5 is above model.num_hidden_layers=4.*from 1 to 4"),
    ],
)
def test_check_model_refuses_models_that_cannot_be_split(degrees, sentence):
    shape = degrees.pop("shape", (6, 96, 4))
    with pytest.raises(LayoutError, match=sentence):
        Layout(**degrees).check_model(*shape)


def test_check_vocabulary_names_degrees_that_divide_it():
    with pytest.raises(
        LayoutError, match=r"model.vocab_size=4002.*choose tp from 1, 2, or .*=4096$"
    ):
        Layout(tp=4).check_vocabulary(4002, 16, 64)
    # The heads allow 3, and a vocabulary of another size does, too.
    with pytest.raises(LayoutError, match=r"choose tp from 1, 2, 4, or model.vocab_size=250368$"):
        Layout(tp=3).check_vocabulary(250112, 12, 3072)
    Layout(tp=3).check_vocabulary(250368, 12, 3072)
    Layout(tp=64).check_vocabulary(4096, 64, 64)


@given(micro=st.integers(1, 8), dp=st.integers(1, 8), size=st.integers(1, 300))
def test_grad_accum_steps_names_the_nearest_valid_batch_sizes(micro, dp, size):
    layout, unit = Layout(dp=dp), micro * dp
    if size % unit == 0:
        assert layout.grad_accum_steps(size, micro) * unit == size
        return
    with pytest.raises(LayoutError) as caught:
        layout.grad_accum_steps(size, micro)
    named = [int(word) for word in str(caught.value).split("choose ")[1].split(" or ")]
    assert all(number % unit == 0 for number in named)
    assert min(abs(number - size) for number in named) <= unit


def test_check_processes_names_the_number_needed():
    with pytest.raises(LayoutError, match=r"3 processes were started.*needs 4"):
        Layout(tp=2, pp=2).check_processes(3)
