"""The table of heads, and a head that one more entry adds to it."""

import json
from collections.abc import Iterator

import pytest
import torch

import mlm
from mlm.batch.labelled_batch import LabelledBatch
from mlm.family.heads import HEADS
from mlm.family.labels import check_classes
from mlm.family.stages import check_labels, stage_layers
from mlm.hf.export import export
from mlm.trained.opening import open_trained
from parallel.pipeline.stages import WholeModel
from tests.family.family_fixtures import TINY, our_model, tokens


def test_heads_are_the_classes_that_mlm_exports():
    exported = {name for name in mlm.__all__ if name.startswith("XLMRobertaXL")}
    assert set(HEADS) == exported - {"XLMRobertaXLConfig"}
    assert all(head.model is getattr(mlm, name) for name, head in HEADS.items())


@pytest.fixture
def ranking() -> Iterator[type]:
    before = dict(HEADS)
    from tests.family import outside_head

    HEADS["XLMRobertaXLForRanking"] = outside_head.HEAD
    yield outside_head.XLMRobertaXLForRanking
    HEADS.clear()
    HEADS.update(before)


def test_head_from_outside_trains_in_both_forms_and_is_saved_loaded_and_exported(ranking, tmp_path):
    config = mlm.XLMRobertaXLConfig(**TINY)
    labels = torch.tensor([1.0, -1.0, 1.0])
    batch = LabelledBatch(tokens(), labels)
    whole = ranking(config, seed=3).train()
    layers = stage_layers(ranking, config, seed=3)
    staged = WholeModel(layers).train()
    loss, outputs = staged(batch.input_ids, batch)
    expected = whole(tokens(), labels=labels)
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(outputs["logits"], expected.logits)
    for model, value in ((whole, expected.loss), (staged, loss)):
        value.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    after, _ = staged(batch.input_ids, batch)
    assert not torch.equal(after, loss)
    torch.testing.assert_close(after, whole(tokens(), labels=labels).loss)

    whole.eval().save_pretrained(tmp_path / "saved")
    logits = whole(tokens()).logits
    assert torch.equal(ranking.from_pretrained(tmp_path / "saved")(tokens()).logits, logits)
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    del values["architectures"]  # which its weights tell, too
    (tmp_path / "saved" / "config.json").write_text(json.dumps(values))
    opened = open_trained(tmp_path / "saved")
    assert opened.head == "XLMRobertaXLForRanking"
    assert torch.equal(opened.model()(tokens()).logits, logits)
    export(str(tmp_path / "saved"), str(tmp_path / "exported"))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "from tests.family.outside_head import XLMRobertaXLForRanking" in card


LABELS = {
    "XLMRobertaXLForMaskedLM": torch.full((3, 20), 128),
    "XLMRobertaXLForCausalLM": torch.full((3, 20), -1),
    "XLMRobertaXLForSequenceClassification": torch.tensor([0, 1, 2]),
    "XLMRobertaXLForTokenClassification": torch.full((3, 20), 2),
    "XLMRobertaXLForMultipleChoice": torch.tensor([3]),
}


@pytest.mark.parametrize("name", LABELS)
def test_check_labels_refuses_what_the_head_cannot_be_trained_on(name):
    config, model = mlm.XLMRobertaXLConfig(**TINY), HEADS[name].model
    batch = LabelledBatch(tokens(), LABELS[name], choices=3)
    with pytest.raises(ValueError, match="is not one of the"):
        check_labels(model, config, batch)
    check_labels(model, config, LabelledBatch(tokens(), LABELS[name].clamp(0, 1), choices=3))


def test_check_labels_leaves_out_what_a_mask_hides():
    config, model = mlm.XLMRobertaXLConfig(**TINY), mlm.XLMRobertaXLForTokenClassification
    labels, mask = torch.zeros(3, 20, dtype=torch.long), torch.ones(3, 20)
    labels[1, 15:], mask[1, 15:] = 9, 0
    check_labels(model, config, LabelledBatch(tokens(), labels, mask))
    with pytest.raises(ValueError, match="is not one of the"):
        check_labels(model, config, LabelledBatch(tokens(), labels))


def test_labels_are_not_read_on_another_device(monkeypatch):
    monkeypatch.delenv("POLYMLM_CHECK", raising=False)
    check_classes(torch.full((2,), 7, device="meta"), 3)


def test_masks_and_ids_are_not_read_on_another_device(monkeypatch):
    """On the meta device a value that is read raises."""
    monkeypatch.delenv("POLYMLM_CHECK", raising=False)
    with torch.device("meta"):
        model = our_model("XLMRobertaXLForMaskedLM")
    ids = tokens().to("meta")
    out = model(ids, attention_mask=torch.ones_like(ids), token_type_ids=ids, labels=ids)
    assert out.logits.shape == (3, 20, 128)
    decoder = our_model("XLMRobertaXLForCausalLM", is_decoder=True).to("meta").train()
    decoder(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
