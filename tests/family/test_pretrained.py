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
def test_an_encoder_that_is_not_whole_is_refused(name, gone, tmp_path):
    our_model(name).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = {each: tensor for each, tensor in load_file(path).items() if gone not in each}
    save_file(held, path)
    with pytest.raises(DataError, match=rf"has no \S*{gone}\S*, which its config asks for"):
        getattr(mlm, name).from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:.*must be trained")
def test_a_new_head_is_drawn_by_torch_where_no_seed_is_given(tmp_path):
    our_model(MODEL).save_pretrained(tmp_path)

    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = mlm.XLMRobertaXLForTokenClassification.from_pretrained(tmp_path)
        return model.classifier.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_saving_leaves_the_config_as_it_is(tmp_path):
    model = our_model("XLMRobertaXLForTokenClassification").to(torch.bfloat16)
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_of_a_config_comes_before_that_of_the_first_weight(key, tmp_path):
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
def test_units_of_the_size_of_a_file(given, size):
    assert shard_bytes(given) == size
