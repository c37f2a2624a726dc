"""Original checkpoints: settings that make another model, parts of several kinds, dtypes."""

import pytest
import torch

from mlm.errors import DataError
from mlm.weights.original import open_original
from mlm.weights.original_config import REQUIRED, config_values
from tests.original_checkpoints import change, checkpoint_of, original_states, write

FC1 = "encoder.sentence_encoder.layers.1.fc1.weight"


@pytest.mark.parametrize("name", REQUIRED)
def test_original_refuses_a_setting_of_another_architecture(name, tmp_path):
    other = not REQUIRED[name][0]
    path = change(tmp_path, lambda values: setattr(values["args"], name, other))
    with pytest.raises(DataError, match=f"trained with {name}={other}"):
        open_original(path)


@pytest.mark.parametrize("name", ["encoder_embed_dim", "encoder_ffn_embed_dim"])
def test_original_refuses_a_size_other_than_the_tensors(name, tmp_path):
    path = change(tmp_path, lambda values: setattr(values["args"], name, 8))
    with pytest.raises(DataError, match=f"trained with {name}=8, and its tensors have"):
        open_original(path)


def test_original_refuses_another_pooler_activation(tmp_path):
    path = change(tmp_path, lambda values: setattr(values["args"], "pooler_activation_fn", "relu"))
    open_original(path)
    with pytest.raises(DataError, match="pooler_activation_fn=relu"):
        open_original(path, "mnli")


@pytest.mark.parametrize("hidden", [2560, 4096])
def test_config_values_of_published_models_need_no_settings(hidden, tmp_path):
    shape = {
        "vocab_size": 250880,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 514,
    }
    values = config_values(tmp_path / "model.pt", {}, shape, classifies=False)
    assert values["num_attention_heads"] == 32


@pytest.mark.parametrize("parts", [1, 2])
def test_original_keeps_half_precision(parts, tmp_path):
    for rank, state in enumerate(original_states(parts)):
        name = "model.pt" if parts == 1 else f"model-model_part-{rank}.pt"
        half = {key: each.half() for key, each in state.items()}
        torch.save(checkpoint_of(half), tmp_path / name)
    weights = open_original(tmp_path).weights
    for name in weights.shapes:
        assert weights.dtypes[name] == weights.read(name).dtype == torch.float16, name


def test_original_refuses_parts_of_two_dtypes(tmp_path):
    def halve(values: dict) -> None:
        values["model"][FC1] = values["model"][FC1].half()

    path = change(tmp_path, halve, parts=2, which=1)
    with pytest.raises(DataError, match=r"part-1\.pt has sentence_encoder\.layers\.1\.fc1\.weight"):
        open_original(path)


def test_original_joins_parts_by_number(tmp_path):
    """Of sixteen, ten comes after nine."""
    for parts in (1, 16):
        (tmp_path / str(parts)).mkdir()
    whole = open_original(write(tmp_path / "1", 1)).weights
    split = open_original(write(tmp_path / "16", 16)).weights
    for name in whole.shapes:
        assert torch.equal(split.read(name), whole.read(name)), name
