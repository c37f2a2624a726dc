import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm.batch.micro_batch import IGNORED
from mlm.data.batches.masking import MaskedUnit, Masking, max_targets
from mlm.errors import UserError
from parallel.keys import key
from tests.training_fixtures import config

VOCAB, MASK = 1000, 999
SPECIAL = [0, 1, 2, 3, MASK]


def mask(ids, lengths, keys, ratio, kind: MaskedUnit = "token", **options):
    return Masking(ratio, VOCAB, kind=kind, **options)(ids, lengths, keys)


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


KINDS = ("token", "span", "word")


def every_third(ids: np.ndarray) -> np.ndarray:
    """Words of three tokens, split at special ids, as with a tokenizer."""
    special = np.isin(ids, SPECIAL)
    begins = special | (np.arange(ids.shape[1]) % 3 == 0)
    begins[:, 1:] |= special[:, :-1]
    return begins


def options(kind: str) -> dict:
    return {"kind": kind, "words": every_third if kind == "word" else None}


@given(any_rows(), st.sampled_from(KINDS))
@settings(deadline=None)
def test_masking_holds_its_laws_for_any_rows(case, kind):
    ids, lengths, keys, ratio = case
    before = ids.copy()
    masked, positions, targets = mask(ids, lengths, keys, ratio, **options(kind))
    assert np.array_equal(ids, before)
    width = max(1, int(ratio * ids.shape[1] + 0.5))
    assert positions.shape == targets.shape == (len(ids), width)
    for n, row in enumerate(ids):
        used = targets[n] != IGNORED
        can = ~np.isin(row[: lengths[n]], SPECIAL)
        most = min(max(1, int(ratio * lengths[n] + 0.5)), can.sum())
        assert min(most, max(1, most - 2)) * (kind == "word") <= used.sum() <= most
        assert kind == "word" or used.sum() == most
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


@given(any_rows(), st.randoms(), st.sampled_from(KINDS))
@settings(deadline=None)
def test_masking_of_a_row_is_independent_of_other_rows(case, random, kind):
    ids, lengths, keys, ratio = case
    whole = mask(ids, lengths, keys, ratio, **options(kind))
    order = list(range(len(ids)))
    random.shuffle(order)
    mixed = mask(ids[order], lengths[order], keys[order], ratio, **options(kind))
    for one, other in zip(whole, mixed, strict=True):
        assert np.array_equal(one[order], other)


def test_masking_masks_exactly_the_share_of_a_full_row():
    assert max_targets(512, 0.15) == 77
    assert max_targets(128, 0.15) == 19
    for seq_len, width in ((512, 77), (128, 19), (8, 1), (30, 5), (10, 2)):
        assert max_targets(seq_len, 0.15) == width
        ids, lengths, keys = rows(seq_len=max(seq_len, 51))
        _, _, targets = mask(ids[:, :seq_len], lengths * 0 + seq_len, keys, 0.15)
        assert ((targets != IGNORED).sum(axis=1) == width).all()


def test_masking_replaces_four_fifths_by_the_mask_and_a_tenth_by_pieces():
    ids, lengths, keys = rows(count=2000)
    masked, positions, targets = mask(ids, lengths, keys, 0.15)
    shown = np.take_along_axis(masked, positions, axis=1)
    total = targets.size  # 38000: a standard deviation of 0.8 is 0.002, of 0.1 0.0015
    assert abs((shown == MASK).sum() / total - 0.8) < 0.008
    assert abs((shown == targets).sum() / total - 0.1) < 0.006
    other = shown[(shown != MASK) & (shown != targets)]
    assert other.min() == 4
    assert other.max() == MASK - 1
    counts = np.histogram(other, bins=10, range=(4, MASK))[0]
    assert abs(counts - len(other) / 10).max() < 5 * np.sqrt(len(other) / 10)


def test_masking_draws_places_uniformly_and_independently():
    ids, lengths, keys = rows(count=4000)
    _, positions, _ = mask(ids, lengths, keys, 0.15)
    hits = np.zeros((4000, 128))
    np.put_along_axis(hits, positions, 1, axis=1)
    assert hits[:, [0, 50]].sum() == 0
    shares = np.delete(hits, [0, 50], axis=1).mean(axis=0)
    assert abs(shares - 19 / 126).max() < 5 * np.sqrt(0.15 * 0.85 / 4000)
    together = (hits[:, 1:50] * hits[:, 2:51]).mean()
    assert abs(together - 19 * 18 / (126 * 125) * 48 / 49) < 0.003


def test_masking_depends_on_keys():
    ids, lengths, keys = rows()
    first = mask(ids, lengths, keys, 0.15)
    again = mask(ids, lengths, keys, 0.15)
    other = mask(ids, lengths, keys + 1, 0.15)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({tuple(row) for row in first[1].tolist()}) == len(ids)


def test_masking_keeps_integer_types_and_equal_settings_mask_equally():
    ids, lengths, keys = rows()
    masked, positions, targets = mask(ids.astype(np.int32), lengths, keys, 0.2)
    assert masked.dtype == np.int32
    assert positions.dtype == targets.dtype == np.int64
    again = Masking(0.2, VOCAB)(ids, lengths, keys)
    assert Masking(0.2, VOCAB).mask_id == MASK
    assert np.array_equal(masked, again[0])


@pytest.mark.parametrize("kind", KINDS)
def test_masking_draws_no_special_id_as_target_or_replacement(kind):
    ids, lengths, keys = rows(count=4000)
    ids[np.random.default_rng(2).random(ids.shape) < 0.3] = 3
    ids[np.random.default_rng(3).random(ids.shape) < 0.1] = MASK
    masked, positions, targets = mask(ids, lengths, keys, 0.15, **options(kind))
    used = targets != IGNORED
    assert (targets[used].min(), targets[used].max()) == (4, MASK - 1)
    shown = np.take_along_axis(masked, positions, axis=1)[used]
    drawn = shown[(shown != MASK) & (shown != targets[used])]
    assert abs(len(drawn) / shown.size - 0.1) < 0.01
    assert (drawn.min(), drawn.max()) == (4, MASK - 1)


def test_masking_gives_a_row_of_unknown_text_no_targets():
    ids, lengths, keys = rows(count=5)
    ids[ids > 2] = 3
    masked, _, targets = mask(ids, lengths, keys, 0.15)
    assert np.array_equal(masked, ids)
    assert (targets == IGNORED).all()


def runs_of(hits: np.ndarray) -> list[int]:
    """Lengths of the runs of ones in rows."""
    edges = np.diff(np.pad(hits.astype(int), ((0, 0), (1, 1))), axis=1)
    return (np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]).tolist()


def hits_of(positions: np.ndarray, targets: np.ndarray, seq_len: int) -> np.ndarray:
    hits = np.zeros((len(positions), seq_len), bool)
    row, slot = np.nonzero(targets != IGNORED)
    hits[row, positions[row, slot]] = True
    return hits


def test_span_lengths_are_geometric():
    # A low ratio, so that spans rarely touch, and long rows, each with one truncated span.
    count, seq_len = 100, 60_000
    ids = np.random.default_rng(1).integers(4, MASK, (count, seq_len), dtype=np.int32)
    lengths, keys = np.full(count, seq_len), np.arange(count)
    _, positions, targets = mask(ids, lengths, keys, 0.004, kind="span", span_p=0.2, span_max=10)
    assert ((targets != IGNORED).sum(axis=1) == 240).all()
    found = np.bincount(runs_of(hits_of(positions, targets, seq_len)), minlength=11)[1:11]
    # P(length = n) = (1 - p)^(n - 1) p, with all longer ones at the maximum.
    expected = np.array([0.8 ** (n - 1) * 0.2 for n in range(1, 10)] + [0.8**9])
    assert abs(found / found.sum() - expected).max() < 0.02
    assert abs((found * np.arange(1, 11)).sum() / found.sum() - 4.46) < 0.15
    _, positions, targets = mask(ids, lengths, keys, 0.004, kind="span", span_p=1.0)
    assert np.mean(runs_of(hits_of(positions, targets, seq_len))) < 1.01


def test_masking_masks_whole_words_alike():
    ids, lengths, keys = rows(count=2000)
    masked, positions, targets = mask(ids, lengths, keys, 0.15, kind="word", words=every_third)
    hits = hits_of(positions, targets, 128)
    begins = every_third(ids)
    words = np.cumsum(begins, axis=1) + 1000 * np.arange(len(ids))[:, None]
    possible = ~np.isin(ids, SPECIAL)
    fates = {"mask": 0, "random": 0, "same": 0}
    for word in np.unique(words[hits]):
        whole = (words == word) & possible
        assert hits[whole].all()
        shown, stood = masked[whole], ids[whole]
        if (shown == MASK).any():
            assert (shown == MASK).all()
            fates["mask"] += 1
        else:
            fates["same" if (shown == stood).all() else "random"] += 1
    shares = {name: count / sum(fates.values()) for name, count in fates.items()}
    assert shares == pytest.approx({"mask": 0.8, "random": 0.1, "same": 0.1}, abs=0.015)
    assert hits.sum(axis=1).mean() > 17.5  # of 19, of which words of three leave one on average


def test_masking_cuts_a_word_longer_than_the_share_if_there_is_no_other():
    ids, lengths, keys = rows(count=50, seq_len=51)
    one = lambda ids: np.arange(ids.shape[1]) == np.zeros((len(ids), 1))  # noqa: E731
    _, positions, targets = mask(ids, lengths, keys, 0.15, kind="word", words=one)
    assert (targets != IGNORED).all()
    assert positions.tolist() == [list(range(1, 9))] * 50


def test_mask_ratio_follows_its_schedule_and_rows_have_room_for_the_largest():
    masking = Masking(0.3, VOCAB, schedule=((100, 0.1), (200, 0.1), (300, 0.4)))
    steps = {0: 0.3, 50: 0.2, 100: 0.1, 150: 0.1, 250: 0.25, 300: 0.4, 10**9: 0.4}
    ids, lengths, keys = rows(seq_len=100)
    for step, ratio in steps.items():
        assert masking.ratio_at(step) == pytest.approx(ratio)
        _, positions, targets = masking(ids, lengths, keys, step)
        assert positions.shape == (64, masking.max_targets(100)) == (64, 40)
        assert ((targets != IGNORED).sum(axis=1) == round(100 * ratio)).all()
    single = masking.single()
    assert (single.ratio_at(10**9), single.kind, single.max_targets(100)) == (0.3, "token", 40)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            {"mask_ratio": 1.0},
            r"data.mask_ratio=1.0 is not above 0 and below 1; the default",
        ),
        ({"mask_ratio_schedule": [[5, 0.0]]}, r"data.mask_ratio_schedule.0.1=0.0 is not above 0"),
        (
            {"mask_ratio_schedule": [[5, 0.2], [4, 0.3]]},
            r"data.mask_ratio_schedule has step 4 after step 5; give \[step, mask_ratio\] pairs",
        ),
        ({"span_p": 0.0}, r"data.span_p=0.0 is not above 0 and at most 1; the default is 0.2"),
        ({"span_max": 0}, r"data.span_max=0 is below 1; give 1 or more"),
        ({"max_bad_shards": 0}, r"data.max_bad_shards=0 is below 1; give 1 or more"),
        ({"masking": "sentence"}, r"data.masking='sentence' is not possible: it should be 'token'"),
    ],
)
def test_masking_settings_report_mistakes_in_one_sentence(data, sentence):
    with pytest.raises(UserError, match=sentence):
        config(data=data)


def test_masking_takes_the_ratio_of_the_step():
    masking = Masking(0.2, VOCAB, schedule=((10, 0.2), (11, 0.4)))
    ids, lengths, keys = rows(seq_len=100)
    for step, count in ((9, 20), (10, 20), (11, 40)):
        assert ((masking(ids, lengths, keys, step)[2] != IGNORED).sum(axis=1) == count).all()


def test_masking_treats_a_span_alike():
    # One span of ten tokens per row, since all have the maximum length.
    ids, lengths, keys = rows(count=3000)
    masked, positions, targets = mask(ids, lengths, keys, 10 / 128, kind="span", span_p=1e-9)
    places = np.sort(positions, axis=1)
    one = (places[:, -1] - places[:, 0] == 9) & ((targets != IGNORED).sum(axis=1) == 10)
    # Without spans truncated by a special id or the end of the row.
    one &= ~np.isin(places[:, 0], (1, 51)) & (places[:, -1] < 127)
    shown = np.take_along_axis(masked, positions, axis=1)[one]
    hidden, same = (shown == MASK).sum(axis=1), (shown == targets[one]).sum(axis=1)
    assert one.sum() > 2000
    assert np.isin(hidden, (0, 10)).all()
    assert abs((hidden == 10).mean() - 0.8) < 0.03
    assert abs((same == 10).mean() - 0.1) < 0.03


def test_replacement_is_independent_of_the_choice_of_targets():
    n = 4000
    ids = np.full((n, 64), 7)
    masked, positions, targets = Masking(0.15, 1000)(ids, np.full(n, 64), np.arange(n))
    hits = hits_of(positions, targets, 64)
    hidden = masked == 999
    for first in (0, 1):  # compares place p with places 2p and 2p + 1
        p = np.arange(1, 32)
        both = hits[:, p] & hits[:, 2 * p + first]
        assert abs(hidden[:, p][both].mean() - 0.8) < 0.03
