import math
from collections import Counter

import numpy as np
import pytest
import torch

from mlm.batch.micro_batch import IGNORED, MicroBatch
from mlm.data.audit.ledger import row_digests, total
from mlm.data.batches.batches import HeldOutBatches, TrainingBatches
from mlm.data.batches.entropy import unigram_entropy
from mlm.data.batches.masking import Masking
from mlm.data.draw import bits
from mlm.data.index import Index
from mlm.data.order.mix import Mix
from mlm.data.order.order import SampleOrder
from mlm.data.reading.reader import TokenReader
from mlm.data.writing import shards
from mlm.data.writing.heldout import PURPOSE
from mlm.errors import DataError
from mlm.text.hashing import text_hash
from parallel.keys import key
from tests.data.writing.test_shards import webdataset_ids
from tests.text_fixtures import LANGUAGES, paragraphs, shards_folder, tokenizer

SEQ_LEN, MASK = 32, 399
MASKING = Masking(0.15, 400)


@pytest.fixture(scope="module")
def reader():
    return TokenReader(Index.open(shards_folder()))


def training(reader, micro=4, seed=1):
    index = reader.index
    mix = Mix(index.train_tokens, [(0, 0.3)])
    order = SampleOrder(index.train_tokens, index.languages, SEQ_LEN, mix, seed)
    return TrainingBatches(reader, order, MASKING, seed, micro, 16)


def held_out(reader, micro=4, blocks=0, seq_len=SEQ_LEN):
    return HeldOutBatches(reader, MASKING, seq_len, micro, blocks)


def unmasked(batch: MicroBatch) -> torch.Tensor:
    """The ids before masking."""
    ids = batch.input_ids.clone()
    rows, slots = torch.nonzero(batch.targets != IGNORED, as_tuple=True)
    ids[rows, batch.positions[rows, slots]] = batch.targets[rows, slots]
    return ids


def stream(split, language) -> np.ndarray:
    """The tokens of a language, as webdataset reads them."""
    mark = "" if split == "train" else ".heldout"
    return webdataset_ids([shards_folder() / f"{sorted(LANGUAGES)[language]}{mark}-000000.tar"])


def check_shapes(batch: MicroBatch, rows: int) -> None:
    assert batch.input_ids.shape == (rows, SEQ_LEN)
    assert batch.positions.shape == batch.targets.shape == (rows, 5)
    assert batch.languages.shape == (rows,)
    assert batch.visibility.shape == (rows, SEQ_LEN, SEQ_LEN)
    for tensor in (
        batch.input_ids,
        batch.positions,
        batch.targets,
        batch.languages,
    ):
        assert tensor.dtype == torch.int64


def test_training_batch_holds_the_blocks_of_its_sample_numbers(reader):
    batches = training(reader)
    assert batches.micro_batches == 4
    size = SEQ_LEN - 1
    for step, k in ((0, 0), (3, 2), (10**9, 3)):
        batch = batches.micro_batch(step, k)
        check_shapes(batch, 4)
        assert batch.masked_tokens == 4 * 5
        numbers = step * 16 + k * 4 + np.arange(4)
        languages, blocks = batches.order.samples(numbers)
        assert batch.languages.tolist() == languages.tolist()
        assert batch.visibility.lengths is None
        for row, language, block in zip(unmasked(batch), languages, blocks, strict=True):
            assert row[0] == 0
            expected = stream("train", language)[size * block : size * (block + 1)]
            assert row[1:].tolist() == expected.tolist()


def joined(batches: TrainingBatches, step: int) -> list[torch.Tensor]:
    parts = [batches.micro_batch(step, k) for k in range(batches.micro_batches)]
    names = ("input_ids", "positions", "targets", "languages")
    return [torch.cat([getattr(part, name) for part in parts]) for name in names]


def test_training_batches_are_equal_for_any_micro_batch_size(reader):
    for step in (0, 7):
        expected = joined(training(reader, micro=16), step)
        for micro in (1, 4, 8):
            for one, other in zip(joined(training(reader, micro), step), expected, strict=True):
                assert torch.equal(one, other)


def test_training_batches_depend_on_the_seed_and_masks_on_the_epoch(reader):
    assert not torch.equal(
        training(reader, seed=2).micro_batch(0, 0).input_ids,
        training(reader).micro_batch(0, 0).input_ids,
    )
    batches, seen = training(reader), {}
    for step in range(600):
        batch = batches.micro_batch(step, 0)
        for row, positions in zip(unmasked(batch).tolist(), batch.positions.tolist(), strict=True):
            seen.setdefault(tuple(row), set()).add(tuple(positions))
    assert any(len(masks) > 1 for masks in seen.values())


def test_held_out_batches_cover_every_language_and_are_filled_up(reader):
    batches = held_out(reader)
    found = {language: [] for language in range(len(LANGUAGES))}
    for k in range(len(batches)):
        batch = batches.micro_batch(k)
        check_shapes(batch, 4)
        lengths = batch.visibility.lengths
        assert lengths is not None
        for row, language, length in zip(unmasked(batch), batch.languages, lengths, strict=True):
            assert row[0] == 0
            assert (row[length:] == 1).all()
            found[int(language)] += row[1:length].tolist()
    for language, ids in found.items():
        expected = stream("heldout", language).tolist()
        assert ids == expected or (ids == expected[: len(ids)] and len(expected) - len(ids) <= 3)
    masked = sum(batches.micro_batch(k).masked_tokens for k in range(len(batches)))
    assert masked == pytest.approx(0.15 * sum(map(len, found.values())), rel=0.2)


def test_held_out_batches_mask_short_rows_in_proportion_and_filler_rows_not_at_all(reader):
    batches = held_out(reader)
    short = 0
    for k in range(len(batches)):
        batch = batches.micro_batch(k)
        masked = (batch.targets != IGNORED).sum(1)
        lengths = batch.visibility.lengths
        assert lengths is not None
        for row, (length, count) in enumerate(zip(lengths, masked, strict=True)):
            if k * 4 + row < len(batches.languages):
                assert count == max(1, int(0.15 * int(length) + 0.5))
                assert (batch.positions[row] < length).all()
                short += int(length) < SEQ_LEN
            else:
                assert (count, length) == (0, 1)
    assert short > 0
    past = batches.micro_batch(len(batches) + 3)
    check_shapes(past, 4)
    assert past.masked_tokens == 0
    odd = held_out(reader, micro=len(batches.languages) - 1)
    assert len(odd) == 2
    assert odd.micro_batch(1).targets[1:].eq(IGNORED).all()
    assert odd.micro_batch(1).targets[0].ne(IGNORED).any()


def test_held_out_batches_take_the_first_blocks_of_a_language_on_request(reader):
    few, every = held_out(reader, blocks=2), held_out(reader)
    for language in range(len(LANGUAGES)):
        blocks = every.blocks[every.languages == language]
        assert few.blocks[few.languages == language].tolist() == blocks[:2].tolist()
    assert len(every.languages) > len(few.languages)


def test_held_out_masks_are_equal_in_any_batch_and_run(reader):
    def rows(batches):
        parts = [batches.micro_batch(k) for k in range(len(batches))]
        ids = torch.cat([part.input_ids for part in parts])
        return ids[: len(batches.languages)]

    assert torch.equal(rows(held_out(reader, micro=4)), rows(held_out(reader, micro=7)))


def test_held_out_batches_skip_a_rest_of_fewer_than_two_words(reader):
    tokens = reader.index.heldout_tokens[0]
    assert stream("heldout", 0)[-1] == 2
    batches = held_out(reader, seq_len=tokens - 1)  # blocks of all but two: a piece and `</s>`
    assert batches.blocks[batches.languages == 0].tolist() == [0]
    batches = held_out(reader, seq_len=tokens - 2)  # one more: two pieces and `</s>`
    assert batches.blocks[batches.languages == 0].tolist() == [0, 1]


def test_held_out_batches_refuse_an_index_without_held_out_text(tmp_path):
    invisible = "\u200b"  # has no ids
    seen = next(
        text
        for text in paragraphs("en", 50)
        if text_hash([invisible], PURPOSE) < text_hash([text], PURPOSE)
    )
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "en.txt").write_text(f"{seen}\n{invisible}\n")
    shards.write(tmp_path / "corpus", tokenizer(), tmp_path / "shards", workers=1)
    index = Index.open(tmp_path / "shards")
    assert (index.heldout_tokens, len(index.shards)) == ([0], 1)
    index.verify(deep=True)
    with pytest.raises(DataError, match="has held-out text to evaluate on; write the"):
        held_out(TokenReader(index))


def test_unigram_entropy_is_of_the_scored_tokens(reader):
    batches = held_out(reader, blocks=3)
    overall, by_language = unigram_entropy(batches)
    counts = {name: Counter() for name in sorted(LANGUAGES)}
    for row, language in enumerate(batches.languages):
        ids = batches.block(row).tolist()
        counts[sorted(LANGUAGES)[language]].update(id for id in ids if id not in (0, 1, 2, MASK))

    def entropy(counter):
        total = counter.total()
        return -sum(n / total * math.log(n / total) for n in counter.values())

    assert by_language == {name: pytest.approx(entropy(of)) for name, of in counts.items()}
    assert overall == pytest.approx(entropy(sum(counts.values(), Counter())))
    assert overall > max(by_language.values())


def test_training_masks_are_keyed_by_sample_seed_and_step(reader):
    masking = Masking(0.15, 400, ((4, 0.15), (5, 0.4)))
    for seed in (1, 2):
        made = training(reader, seed=seed)
        made.masking = masking
        for step in (0, 4, 5, 1000):
            batch = made.micro_batch(step, 1)
            numbers = step * 16 + 4 + np.arange(4)
            languages, blocks = made.order.samples(numbers)
            ids = made.reader.gather("train", languages, blocks * (SEQ_LEN - 1), SEQ_LEN - 1)
            keys = bits(np.uint64(key(seed, "mask")), numbers.astype(np.uint64))
            masked, positions, targets = masking(ids, np.full(4, SEQ_LEN), keys, step)
            assert np.array_equal(batch.input_ids.numpy(), masked)
            assert np.array_equal(batch.positions.numpy(), positions)
            assert batch.masked_tokens == 4 * (5 if step < 5 else 13)
            assert batch.digest == total(row_digests(numbers, masked, positions, targets))


def test_held_out_masks_are_single_tokens_keyed_by_language_and_block(reader):
    trained = Masking(0.15, 400, ((0, 0.5),), "span")
    for blocks in (0, 2):
        made = HeldOutBatches(reader, trained, SEQ_LEN, 4, blocks)
        for k in range(len(made)):
            batch = made.micro_batch(k)
            for at, row in enumerate(range(4 * k, min(4 * k + 4, len(made.languages)))):
                ids = np.full((1, SEQ_LEN), 1, np.int32)
                length = int(made.tokens[row]) + 1
                ids[0, 0], ids[0, 1:length] = 0, made.block(row)
                name = reader.index.languages[made.languages[row]]
                own = np.array([key("evaluation", name, int(made.blocks[row]))], np.uint64)
                masked, positions, _ = MASKING(ids, np.array([length]), own)
                assert batch.input_ids[at].tolist() == masked[0].tolist()
                assert batch.positions[at, : positions.shape[1]].tolist() == positions[0].tolist()
                assert batch.positions.shape[1] == 16


def test_training_batches_may_be_larger_than_the_rows_computed_at_a_time(reader):
    order = training(reader).order
    whole = TrainingBatches(reader, order, MASKING, 1, 192, 192).micro_batch(0, 0)
    small = TrainingBatches(reader, order, MASKING, 1, 64, 192).of_step(0, [0, 1, 2])
    assert torch.equal(whole.input_ids, torch.cat([one.input_ids for one in small]))
