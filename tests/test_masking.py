import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.batch import IGNORED
from mlm.data.masking import Masking, mask, masked_positions
from parallel.keys import key

VOCAB, MASK = 1000, 999
SPECIAL = [0, 1, 2, MASK]


def rows(count=64, seq_len=128, seed=1):
    ids = np.random.default_rng(seed).integers(4, MASK, (count, seq_len))
    ids[:, 0] = 0
    ids[:, 50] = 2
    keys = np.array([key(seed, "mask", n) for n in range(count)])
    return ids, np.full(count, seq_len), keys


@st.composite
def any_rows(draw):
    seq_len = draw(st.integers(2, 40))
    count = draw(st.integers(1, 5))
    ids = np.array(
        draw(
            st.lists(
                st.lists(
                    st.sampled_from([0, 1, 2, 3, 4, 5, 500, 998, MASK]),
                    min_size=seq_len,
                    max_size=seq_len,
                ),
                min_size=count,
                max_size=count,
            )
        )
    )
    lengths = np.array(draw(st.lists(st.integers(1, seq_len), min_size=count, max_size=count)))
    keys = np.array(draw(st.lists(st.integers(0, 2**63 - 1), min_size=count, max_size=count)))
    return ids, lengths, keys, draw(st.floats(0.01, 0.99))


@given(any_rows())
@settings(deadline=None)
def test_what_holds_for_any_rows(case):
    ids, lengths, keys, ratio = case
    before = ids.copy()
    masked, positions, targets = mask(ids, lengths, keys, ratio, MASK, VOCAB)
    assert np.array_equal(ids, before)
    width = max(1, int(ratio * ids.shape[1] + 0.5))
    assert positions.shape == targets.shape == (len(ids), width)
    for n, row in enumerate(ids):
        used = targets[n] != IGNORED
        can = ~np.isin(row[: lengths[n]], SPECIAL)
        assert used.sum() == min(max(1, int(ratio * lengths[n] + 0.5)), can.sum())
        assert used[: used.sum()].all()
        places = positions[n][used]
        assert (np.diff(places) > 0).all()
        assert can[places].all()
        assert (positions[n][~used] == 0).all()
        assert np.array_equal(targets[n][used], row[places])
        untouched = np.setdiff1d(np.arange(ids.shape[1]), places)
        assert np.array_equal(masked[n][untouched], row[untouched])
        changed = masked[n][places]
        assert ((changed == MASK) | (changed >= 4) | (changed == row[places])).all()
        assert (changed < VOCAB).all()


@given(any_rows(), st.randoms())
@settings(deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(case, random):
    ids, lengths, keys, ratio = case
    whole = mask(ids, lengths, keys, ratio, MASK, VOCAB)
    order = list(range(len(ids)))
    random.shuffle(order)
    mixed = mask(ids[order], lengths[order], keys[order], ratio, MASK, VOCAB)
    for one, other in zip(whole, mixed, strict=True):
        assert np.array_equal(one[order], other)


def test_a_full_row_has_exactly_its_share():
    assert masked_positions(512, 0.15) == 77
    assert masked_positions(128, 0.15) == 19
    for seq_len, width in ((512, 77), (128, 19), (8, 1)):
        ids, lengths, keys = rows(seq_len=max(seq_len, 51))
        _, _, targets = mask(ids[:, :seq_len], lengths * 0 + seq_len, keys, 0.15, MASK, VOCAB)
        assert ((targets != IGNORED).sum(axis=1) == width).all()


def test_four_fifths_show_the_mask_a_tenth_another_piece():
    ids, lengths, keys = rows(count=2000)
    masked, positions, targets = mask(ids, lengths, keys, 0.15, MASK, VOCAB)
    shown = np.take_along_axis(masked, positions, axis=1)
    total = targets.size  # 38000: a standard deviation of 0.8 is 0.002, of 0.1 0.0015
    assert abs((shown == MASK).sum() / total - 0.8) < 0.008
    assert abs((shown == targets).sum() / total - 0.1) < 0.006
    other = shown[(shown != MASK) & (shown != targets)]
    assert other.min() == 4
    assert other.max() == MASK - 1
    counts = np.histogram(other, bins=10, range=(4, MASK))[0]
    assert abs(counts - len(other) / 10).max() < 5 * np.sqrt(len(other) / 10)


def test_every_place_is_as_likely_and_no_two_go_together():
    ids, lengths, keys = rows(count=4000)
    _, positions, _ = mask(ids, lengths, keys, 0.15, MASK, VOCAB)
    hits = np.zeros((4000, 128))
    np.put_along_axis(hits, positions, 1, axis=1)
    assert hits[:, [0, 50]].sum() == 0
    shares = np.delete(hits, [0, 50], axis=1).mean(axis=0)
    assert abs(shares - 19 / 126).max() < 5 * np.sqrt(0.15 * 0.85 / 4000)
    together = (hits[:, 1:50] * hits[:, 2:51]).mean()
    assert abs(together - 19 * 18 / (126 * 125) * 48 / 49) < 0.003


def test_keys_decide():
    ids, lengths, keys = rows()
    first = mask(ids, lengths, keys, 0.15, MASK, VOCAB)
    again = mask(ids, lengths, keys, 0.15, MASK, VOCAB)
    other = mask(ids, lengths, keys + 1, 0.15, MASK, VOCAB)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(row) for row in first[1].tolist()}) == len(ids)


def test_integer_types_are_kept_and_settings_are_the_same_function():
    ids, lengths, keys = rows()
    masked, positions, targets = mask(ids.astype(np.int32), lengths, keys, 0.2, MASK, VOCAB)
    assert masked.dtype == np.int32
    assert positions.dtype == targets.dtype == np.int64
    again = Masking(0.2, VOCAB)(ids, lengths, keys)
    assert Masking(0.2, VOCAB).mask_id == MASK
    assert np.array_equal(masked, again[0])


@pytest.mark.parametrize("mask_id", [4, 500, 999])
def test_the_mask_is_no_replacement_wherever_its_id_lies(mask_id):
    ids, lengths, keys = rows(count=4000)
    ids[ids > 2] = 3  # so that what is not <mask> or 3 was drawn
    masked, positions, targets = mask(ids, lengths, keys, 0.15, mask_id, VOCAB)
    shown = np.take_along_axis(masked, positions, axis=1)
    drawn = shown[(shown != mask_id) & (shown != 3)]
    assert abs(len(drawn) / shown.size - 0.1) < 0.006
    assert np.array_equal(np.unique(drawn), np.setdiff1d(np.arange(4, VOCAB), [mask_id]))
    assert (targets == 3).all()  # <unk> is a target
