"""What reading and saving a model asks of its config, its encoder and torch's generator."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mlm
from mlm.errors import DataError
from mlm.family.options import shard_bytes
from tests.family.family_fixtures import our_model

MASKED, MODEL = "XLMRobertaXLForMaskedLM", "XLMRobertaXLModel"


@pytest.mark.parametrize(
    "gone", ["embeddings.word_embeddings.weight", "encoder.LayerNorm.bias", "encoder.layer.2."]
)
@pytest.mark.parametrize("name", [MODEL, MASKED])
def test_from_pretrained_refuses_an_incomplete_encoder(name, gone, tmp_path):
    our_model(name).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = {each: tensor for each, tensor in load_file(path).items() if gone not in each}
    save_file(held, path)
    with pytest.raises(DataError, match=rf"has no \S*{gone}\S*, which its config asks for"):
        getattr(mlm, name).from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:.*must be trained")
def test_from_pretrained_draws_a_new_head_by_torch_without_a_seed(tmp_path):
    our_model(MODEL).save_pretrained(tmp_path)

    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = mlm.XLMRobertaXLForTokenClassification.from_pretrained(tmp_path)
        return model.classifier.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_save_pretrained_leaves_the_config_unchanged(tmp_path):
    model = our_model("XLMRobertaXLForTokenClassification").to(torch.bfloat16)
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_from_pretrained_prefers_the_dtype_of_the_config(key, tmp_path):
    model = our_model(MASKED).to(torch.bfloat16)
    model.get_input_embeddings().float()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    kept = {name: value for name, value in values.items() if name not in ("dtype", "torch_dtype")}
    path.write_text(json.dumps(kept | {key: "float16"}))
    again = mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.float16


@pytest.mark.parametrize(
    ("given", "size"),
    [("5GB", 5 * 10**9), ("2GiB", 2 << 30), ("1.5MB", 1_500_000), ("3kb", 3000), (7, 7)],
)
def test_save_pretrained_knows_units_of_sizes(given, size):
    assert shard_bytes(given) == size
