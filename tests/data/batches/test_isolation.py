"""`data.isolate_documents=true`: documents in one row are processed as if alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mlm.batch.micro_batch import IGNORED, MicroBatch
from mlm.batch.visibility import Visibility
from mlm.data.batches.batches import HeldOutBatches, TrainingBatches, document_starts
from mlm.data.batches.masking import Masking
from mlm.data.index import Index
from mlm.data.order.mix import Mix
from mlm.data.order.order import SampleOrder
from mlm.data.reading.reader import TokenReader
from mlm.model.embeddings import PositionEmbeddings
from tests.model.test_model import CONFIG, pretrained, reference
from tests.text_fixtures import shards_folder
from tests.training_fixtures import config, metrics, run

SEQ_LEN = 64
PLAIN = replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def batches(isolated: bool = True) -> TrainingBatches:
    reader = TokenReader(Index.open(shards_folder()))
    tokens, names = reader.index.train_tokens, reader.index.languages
    order = SampleOrder(tokens, names, SEQ_LEN, Mix(tokens, [(0, 0.3)]), 1)
    return TrainingBatches(
        reader, order, Masking(0.3, reader.index.vocab_size), 1, 8, 8, isolated=isolated
    )


def documents(row: np.ndarray) -> list[slice]:
    """The slices of documents in a row, which end after each `</s>`."""
    ends = [*(np.flatnonzero(row == 2) + 1).tolist(), len(row)]
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False) if b > a]


def some_batch() -> MicroBatch:
    """A batch with several documents in each row, which most do not have."""
    made = batches()
    for step in range(500):
        batch = made.micro_batch(step, 0)
        if (batch.input_ids == 2).sum() >= 6:
            return batch
    raise AssertionError("the corpus has short documents")


def test_document_starts_follow_the_previous_document():
    batch = some_batch()
    starts = batch.visibility.document_starts
    assert starts is not None
    for row, begins in zip(batch.input_ids.numpy(), starts.numpy(), strict=True):
        for part in documents(row):
            assert (begins[part] == part.start).all()
    assert batches(isolated=False).micro_batch(0, 0).visibility.document_starts is None
    # Padding sees only itself.
    ids, lengths = np.array([[0, 9, 2, 9, 1, 1]]), np.array([4])
    assert document_starts(ids, lengths).tolist() == [[0, 0, 0, 3, 4, 4]]


@pytest.mark.parametrize("attention", ["fused", "unfused"])
def test_isolated_documents_have_the_loss_and_gradients_of_transformers_on_each_alone(attention):
    batch = some_batch()
    shape = replace(PLAIN, vocab_size=512, max_position_embeddings=SEQ_LEN + 2)
    model, parameters = pretrained(shape, seed=4, attention=attention)
    theirs = reference(shape, parameters)
    total = batch.masked_tokens
    found, _ = model.train()(batch.input_ids, replace(batch, loss_scale=1 / total))
    found.backward()

    labels = torch.full_like(batch.input_ids, IGNORED)
    rows, slots = torch.nonzero(batch.targets != IGNORED, as_tuple=True)
    labels[rows, batch.positions[rows, slots]] = batch.targets[rows, slots]
    expected, seen = torch.zeros(()), 0
    for row, label in zip(batch.input_ids, labels, strict=True):
        for part in documents(row.numpy()):
            logits = theirs(row[None, part]).logits[0]
            expected = expected + F.cross_entropy(logits, label[part], reduction="sum")
            seen += 1
    assert seen >= 14
    (expected / total).backward()
    torch.testing.assert_close(found, expected / total, rtol=1e-6, atol=1e-6)
    grads = dict(theirs.named_parameters())
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, grads[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_documents_that_are_not_isolated_see_each_other():
    batch = some_batch()
    shape = replace(PLAIN, vocab_size=512, max_position_embeddings=SEQ_LEN + 2)
    model, _ = pretrained(shape, seed=4)
    losses = [
        float(model.train()(one.input_ids, replace(one, loss_scale=1.0))[0])
        for one in (batch, replace(batch, visibility=Visibility(batch.visibility.shape)))
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_held_out_batches_isolate_documents():
    made = batches()
    blocks = HeldOutBatches(made.reader, made.masking, SEQ_LEN, 4, 0, isolated=True)
    for k in range(len(blocks)):
        batch = blocks.micro_batch(k)
        starts, lengths = batch.visibility.document_starts, batch.visibility.lengths
        assert starts is not None
        assert lengths is not None
        rows = zip(batch.input_ids, starts, lengths, strict=True)
        for row, begins, length in rows:
            real = row[: int(length)].numpy()
            for part in documents(real):
                assert (begins[part] == part.start).all()
            assert (begins[int(length) :] == length).all()


@pytest.mark.ranks
def test_isolated_documents_give_equal_losses_in_all_layouts(tmp_path):
    """Pipeline stages and tensor ranks, with recompute, see the same documents."""
    data = {"isolate_documents": True, "masking": "span", "mask_ratio_schedule": [[4, 0.3]]}
    model = {"attention_probs_dropout_prob": 0.0}  # which differs between tensor ranks
    one = config(data=data, model=model)
    four = config(data=data, model=model, parallel={"tp": 2, "pp": 2}, train={"recompute": True})
    for name, made in (("one", one), ("four", four)):
        assert run(tmp_path / name, made)["code"] == 0
    rows = [metrics(tmp_path / name) for name in ("one", "four")]
    assert len(rows[0]) == 6
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_padding_after_isolated_documents_keeps_the_padding_position():
    made = batches()
    blocks = HeldOutBatches(made.reader, made.masking, SEQ_LEN, 4, 0, isolated=True)
    found = (blocks.micro_batch(k) for k in range(len(blocks)))
    batch = next(one for one in found if (one.input_ids == 1).any())
    shape = replace(PLAIN, vocab_size=512, max_position_embeddings=SEQ_LEN + 2)
    embedded = PositionEmbeddings(shape).eval()
    x = embedded(torch.zeros(4, SEQ_LEN, shape.hidden_size), batch)
    pads = batch.input_ids == 1
    expected = embedded.position_embeddings.weight[1] + embedded.token_type_embeddings.weight[0]
    assert torch.equal(x[pads], expected.expand(int(pads.sum()), -1))
