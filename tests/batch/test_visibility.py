"""Which tokens of a micro-batch may attend to which."""

import pytest
import torch

from mlm.batch.checks import VARIABLE, values_checked
from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility, masked_by

SHAPE = (2, 4, 4)
LOWER = torch.ones(4, 4, dtype=torch.bool).tril()


def by_hand(seen: Visibility) -> torch.Tensor:
    """(rows, queries, keys), each entry by its definition."""
    made = torch.ones(seen.shape, dtype=torch.bool)
    rows, queries, keys = seen.shape
    for r in range(rows):
        for q in range(queries):
            for k in range(keys):
                column = k - (keys - queries)
                if seen.document_starts is not None:
                    made[r, q, k] &= bool(seen.document_starts[r, q] == seen.document_starts[r, k])
                elif seen.lengths is not None:
                    made[r, q, k] &= k < int(seen.lengths[r])
                if seen.mask is not None:
                    one = seen.mask[r, q, k] if seen.mask.dim() == 3 else seen.mask[r, k]
                    made[r, q, k] &= bool(one)
                if seen.causal and (seen.mask is None or seen.mask.dim() == 2):
                    made[r, q, k] &= column <= q
    return made


MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])
LEFT = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
STARTS = torch.tensor([[0, 0, 2, 2], [0, 1, 1, 3]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "seen",
    [
        Visibility(SHAPE),
        Visibility((2, 1, 4)),
        Visibility((2, 2, 4)),
        Visibility(SHAPE, lengths=torch.tensor([2, 4])),
        Visibility(SHAPE, lengths=torch.tensor([2, 4]), document_starts=STARTS),
        Visibility(SHAPE, mask=MASK.bool()),
        Visibility((2, 3, 4), mask=LEFT.bool()),
        Visibility(SHAPE, mask=(torch.arange(32).view(SHAPE) % 3 > 0)),
    ],
)
def test_visibility_equals_its_definition(seen, causal):
    seen = Visibility(
        seen.shape,
        seen.lengths,
        seen.document_starts,
        causal,
        seen.mask,
        has_masked_rows=seen.has_masked_rows,
    )
    expected = by_hand(seen)
    if seen.allowed is None:
        assert expected.all()
        assert seen.added(torch.float32) is None
        return
    assert torch.equal(seen.allowed.expand(2, 1, *seen.shape[1:])[:, 0], expected)
    numbers = seen.added(torch.float32)
    assert numbers is seen.added(torch.float32), "made once"
    assert torch.equal(numbers == 0, seen.allowed)
    one = seen.of_rows(slice(1, 2)).allowed
    assert one is not None
    assert torch.equal(one.expand(1, 1, *seen.shape[1:])[0, 0], expected[1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("queries", [1, 2, 4])
@pytest.mark.parametrize("given", [None, MASK, LEFT, torch.zeros(2, 4), torch.ones(2, 4)])
def test_masked_by_hides_what_the_mask_hides(given, queries, causal):
    mask = None if given is None else given.bool()
    expected = by_hand(Visibility((2, queries, 4), causal=causal, mask=mask))
    seen = masked_by("mask", given, (2, queries, 4), causal)
    assert torch.equal(by_hand(seen), expected)
    assert seen.has_masked_rows is not bool(expected.any(-1).all())


def test_masked_by_takes_a_3d_mask_as_it_is():
    upper = LOWER.t().expand(2, 4, 4)
    seen = masked_by("mask", upper, SHAPE, causal=True)
    assert seen.allowed is not None
    assert torch.equal(seen.allowed[:, 0], upper)
    everything = masked_by("mask", torch.ones(SHAPE), SHAPE, causal=True).allowed
    assert everything is not None
    assert everything.all()


def test_masked_by_refuses_other_shapes_and_values():
    with pytest.raises(ValueError, match=r"mask has the shape \(2, 3\)"):
        masked_by("mask", torch.ones(2, 3), SHAPE)
    with pytest.raises(ValueError, match=r"mask holds 0\.5"):
        masked_by("mask", MASK * 0.5, SHAPE)


def test_values_checked_on_other_devices_follows_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    elsewhere = torch.ones(2, 4, device="meta")
    assert values_checked(MASK)
    assert not values_checked(elsewhere)
    assert masked_by("mask", elsewhere, SHAPE, device=elsewhere.device).has_masked_rows is None
    monkeypatch.setenv(VARIABLE, "1")
    assert values_checked(elsewhere)


def test_visibility_of_rows_has_their_number():
    seen = Visibility(SHAPE, lengths=torch.tensor([2, 4]))
    assert seen.of_rows(slice(1, 2)).shape == (1, 4, 4)
    assert seen.of_rows(slice(1, 9)).shape == (1, 4, 4)


def test_visibility_moves_to_a_device_as_a_whole():
    meta = torch.device("meta")
    moved = Visibility(SHAPE, lengths=torch.tensor([2, 4]), causal=True).to(meta)
    assert moved.allowed is not None
    assert (moved.device, moved.allowed.device) == (meta, meta)
    batch = MicroBatch(STARTS, Visibility(SHAPE, document_starts=STARTS), STARTS, STARTS, STARTS)
    seen = batch.to(meta).visibility
    assert seen.document_starts is not None
    assert (seen.device, seen.document_starts.device) == (meta, meta)
