"""What the checks of an export or an import must find."""

import pytest
import tokenizers
import torch

import mlm
from mlm.errors import UserError
from mlm.family.plain import Sample
from mlm.hf import check
from mlm.hf import export as hf
from mlm.hf.importing import import_model
from mlm.trained.opening import open_trained
from mlm.weights import write
from tests.exported_run import trained_run
from tests.published_folders import (
    MASKED,
    POSITIONS,
    QUERY,
    damaged,
    folder_of,
    left_nothing,
    model,
)


def test_export_finds_damage_outside_of_the_compared_text(tmp_path, monkeypatch):
    real = write.write_safetensors

    def wrong(path, shapes, read, dtypes):
        def other(name):
            tensor = read(name).clone()
            if name == POSITIONS:
                tensor[0] += 0.5  # no token has this position
            return tensor

        real(path, shapes, other, dtypes)

    monkeypatch.setattr(write, "write_safetensors", wrong)
    with pytest.raises(UserError, match=rf"what was written differs from .* in {POSITIONS}"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert left_nothing(tmp_path)


@pytest.mark.parametrize("run", [import_model, hf.export])
def test_check_compares_the_outputs_of_transformers(run, tmp_path, monkeypatch):
    source = folder_of(model(MASKED), tmp_path / "source")
    asked = check._transformers

    def off(*given):
        version, theirs = asked(*given)
        return version, theirs + 1e-3 * theirs.abs().max()

    monkeypatch.setattr(check, "_transformers", off)
    with pytest.raises(UserError, match="differ from"):
        run(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_export_compares_the_ids_of_transformers(tmp_path, monkeypatch):
    asked = check._their_tokenizer

    def lower(folder):
        made = asked(folder)
        made.normalizer = tokenizers.normalizers.Lowercase()
        return made

    monkeypatch.setattr(check, "_their_tokenizer", lower)
    with pytest.raises(UserError, match="gives other ids than sentencepiece"):
        hf.export(str(trained_run()), str(tmp_path / "out"))
    assert left_nothing(tmp_path)


@pytest.mark.parametrize("run", [import_model, hf.export])
def test_check_refuses_outputs_that_are_not_finite(run, tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    damaged(source, lambda held: held | {QUERY: held[QUERY] * float("nan")})
    with pytest.raises(UserError, match="of which some are not finite, so nothing was"):
        run(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_check_refuses_outputs_of_another_shape():
    """Even if one could be broadcast to the other."""
    sample = Sample(torch.zeros(2, 3).long(), torch.tensor([3, 3]), torch.zeros(2, 3).long())
    apart = check._difference(torch.zeros(2, 3, 4), torch.zeros(2, 3, 1), sample)
    assert apart == float("inf")


def test_export_truncates_where_positions_end(tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")  # 66 positions, that of padding is 1
    assert open_trained(source).max_tokens == 64
    hf.export(str(source), str(tmp_path / "out"))
    made = mlm.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = made("kabu " * 99, truncation=True, return_tensors="pt")
    assert batch.input_ids.shape[1] == 64
    mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "out")(**batch)
