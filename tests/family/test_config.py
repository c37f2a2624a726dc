"""The family's config: its keys and defaults, and files that transformers reads and writes."""

import copy
import json

import pytest
import torch
import transformers

import mlm
from tests.family.family_fixtures import TINY

KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "use_cache",
    "classifier_dropout",
    "is_decoder",
    "add_cross_attention",
    "problem_type",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "num_labels",
    "id2label",
    "label2id",
)
# No default among them, so that a key that is lost shows.
CHANGED = {
    "vocab_size": 256,
    "hidden_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "intermediate_size": 80,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "max_position_embeddings": 66,
    "type_vocab_size": 3,
    "initializer_range": 0.05,
    "layer_norm_eps": 1e-6,
    "pad_token_id": 3,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "use_cache": False,
    "classifier_dropout": 0.4,
    "is_decoder": True,
    "add_cross_attention": True,
    "problem_type": "multi_label_classification",
    "output_hidden_states": True,
    "return_dict": False,
    "id2label": {0: "no", 1: "perhaps", 2: "yes"},
    "label2id": {"no": 0, "perhaps": 1, "yes": 2},
}


def values(config, keys=KEYS) -> dict:
    return {key: getattr(config, key) for key in keys}


def test_config_defaults_are_those_of_the_reference():
    ours = mlm.XLMRobertaXLConfig()
    assert values(ours) == values(transformers.XLMRobertaXLConfig())
    assert ours.model_type == "xlm-roberta-xl"
    assert ours.position_embedding_type == "absolute"  # no longer a key of transformers 5
    assert ours.label_smoothing == 0.0
    assert ours.pruned_heads == {}


def test_config_takes_values_in_the_order_of_the_reference():
    """The reference of transformers 4 took them by place, too."""
    shape = (1000, 64, 2, 4, 128, "relu", 0.2, 0.3, 34, 2, 0.1, 1e-6, 3, 4, 5)
    config = mlm.XLMRobertaXLConfig(*shape, "relative_key", False, 0.4)
    expected = {
        "vocab_size": 1000,
        "num_hidden_layers": 2,
        "hidden_act": "relu",
        "attention_probs_dropout_prob": 0.3,
        "type_vocab_size": 2,
        "eos_token_id": 5,
        "position_embedding_type": "relative_key",
        "use_cache": False,
        "classifier_dropout": 0.4,
    }
    assert values(config, expected) == expected


def test_config_keeps_every_keyword():
    config = mlm.XLMRobertaXLConfig(**CHANGED)
    assert values(config, CHANGED) == CHANGED
    assert config.num_labels == 3


@pytest.mark.parametrize("changes", [{}, CHANGED], ids=["defaults", "changed"])
def test_config_file_is_read_by_transformers(changes, tmp_path):
    ours = mlm.XLMRobertaXLConfig(**changes)
    ours.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    for kind in (transformers.XLMRobertaXLConfig, transformers.AutoConfig):
        theirs = kind.from_pretrained(folder, local_files_only=True)
        assert type(theirs).__name__ == "XLMRobertaXLConfig"
        assert values(theirs) == values(ours)
    assert mlm.XLMRobertaXLConfig.from_pretrained(folder).to_dict() == ours.to_dict()
    assert mlm.XLMRobertaXLConfig.from_pretrained(str(folder)).to_dict() == ours.to_dict()


@pytest.mark.parametrize("changes", [{}, CHANGED], ids=["defaults", "changed"])
def test_config_file_of_transformers_is_read_and_written(changes, tmp_path):
    theirs = transformers.XLMRobertaXLConfig(**changes)
    theirs.save_pretrained(tmp_path)
    ours = mlm.XLMRobertaXLConfig.from_pretrained(tmp_path)
    assert values(ours) == values(theirs)
    ours.save_pretrained(tmp_path / "again")
    again = transformers.XLMRobertaXLConfig.from_pretrained(tmp_path / "again")
    assert values(again) == values(theirs)


def test_config_survives_a_round_trip_through_dict_and_json():
    config = mlm.XLMRobertaXLConfig(**CHANGED, label_smoothing=0.1, pruned_heads={1: [0, 2]})
    held = config.to_dict()
    assert held["model_type"] == "xlm-roberta-xl"
    text = config.to_json_string()
    for given in (held, json.loads(text)):
        again = mlm.XLMRobertaXLConfig.from_dict(given)
        assert values(again) == values(config)
        assert again.to_dict() == held
        assert again.label_smoothing == 0.1
        assert again.pruned_heads == {1: [0, 2]}
    assert mlm.XLMRobertaXLConfig.from_dict(held, hidden_size=96).hidden_size == 96
    held["id2label"].clear()
    assert config.num_labels == 3, "what to_dict gives is a copy"


def test_config_from_pretrained_takes_changes(tmp_path):
    mlm.XLMRobertaXLConfig(**TINY).save_pretrained(tmp_path)
    config = mlm.XLMRobertaXLConfig.from_pretrained(tmp_path, num_labels=4, is_decoder=True)
    assert config.num_labels == 4
    assert config.is_decoder
    assert config.hidden_size == TINY["hidden_size"]
    with pytest.raises(ValueError, match=r"num_label=4.*num_labels"):
        mlm.XLMRobertaXLConfig.from_pretrained(tmp_path, num_label=4)


def test_config_keeps_unknown_keys_of_a_file(tmp_path):
    theirs = transformers.XLMRobertaXLConfig(**TINY, dtype="bfloat16").to_dict()
    unknown = {"adapters": {"rank": [1, 2]}, "trained_by": "somebody"}
    (tmp_path / "config.json").write_text(json.dumps(theirs | unknown))
    config = mlm.XLMRobertaXLConfig.from_pretrained(tmp_path)
    assert {key: config.extra[key] for key in unknown} == unknown
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["dtype"] == "bfloat16"
    assert {key: written[key] for key in unknown} == unknown
    # Two keys are not served; what they say here is what leaving them out means.
    lost = {key for key, value in theirs.items() if value is not None} - set(written)
    assert lost <= {"chunk_size_feed_forward", "is_encoder_decoder"}


def test_config_labels_and_their_number_follow_each_other():
    config = mlm.XLMRobertaXLConfig(num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    named = mlm.XLMRobertaXLConfig(id2label={"0": "no", "1": "yes", "2": "both"})
    assert named.id2label == {0: "no", 1: "yes", 2: "both"}
    assert named.num_labels == 3
    assert named.label2id == {"no": 0, "yes": 1, "both": 2}
    named.num_labels = 3
    assert named.id2label[0] == "no", "as many as before: names stay"
    named.num_labels = 2
    assert named.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert named.label2id == {"LABEL_0": 0, "LABEL_1": 1}
    both = mlm.XLMRobertaXLConfig(num_labels=2, id2label={0: "no", 1: "yes"})
    assert both.id2label == {0: "no", 1: "yes"}
    with pytest.raises(ValueError, match=r"num_labels=3.*2"):
        mlm.XLMRobertaXLConfig(num_labels=3, id2label={0: "no", 1: "yes"})
    with pytest.raises(ValueError, match="num_labels=0"):
        mlm.XLMRobertaXLConfig(num_labels=0)


def test_config_shares_nothing_with_another():
    one, other = mlm.XLMRobertaXLConfig(), mlm.XLMRobertaXLConfig()
    one.id2label[0] = "changed"
    one.pruned_heads[0] = [1]
    one.hidden_dropout_prob = 0.5
    one.is_decoder = True
    assert values(other) == values(mlm.XLMRobertaXLConfig())
    assert other.pruned_heads == {}
    copied = copy.deepcopy(one)
    copied.id2label[0] = "again"
    assert one.id2label[0] == "changed"
    assert copied.hidden_dropout_prob == 0.5
    assert one.to_dict()["is_decoder"] is True


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hiden_size": 3}, r"hiden_size=3.*hidden_size"),
        ({"hidden_layers": 3}, r"hidden_layers=3.*num_hidden_layers"),
        ({"dropout_of_everything": 0}, r"dropout_of_everything=0.*key"),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings=False.*True"),
        ({"is_encoder_decoder": True}, r"is_encoder_decoder=True.*False"),
    ],
)
def test_config_refuses_unsupported_keys(given, message):
    with pytest.raises(ValueError, match=message):
        mlm.XLMRobertaXLConfig(**given)


def test_config_refuses_attributes_that_are_not_keys():
    """A misspelt one would be ignored silently."""
    with pytest.raises((AttributeError, ValueError), match="hidden_dropout_prob"):
        mlm.XLMRobertaXLConfig().hidden_dropout = 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, r"roberta.*xlm-roberta-xl"),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings=False"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config"),
    ],
)
def test_config_refuses_unsupported_files(changes, message, tmp_path):
    held = mlm.XLMRobertaXLConfig(**TINY).to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message):
        mlm.XLMRobertaXLConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, r"hidden_size=32.*num_attention_heads=5"),
        ({"hidden_act": "mish"}, r"hidden_act='mish'.*gelu.*gelu_new.*relu.*silu"),
        ({"position_embedding_type": "rotary"}, r"'rotary'.*absolute.*relative_key_query"),
        ({"problem_type": "guessing"}, r"'guessing'.*regression"),
        ({"hidden_dropout_prob": 1.5}, r"hidden_dropout_prob=1.5"),
        ({"classifier_dropout": -0.1}, r"classifier_dropout=-0.1"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers=0"),
        ({"vocab_size": 12.5}, r"vocab_size=12.5"),
        ({"pad_token_id": 128}, r"pad_token_id=128"),
        ({"max_position_embeddings": 2}, r"max_position_embeddings=2"),
        ({"add_cross_attention": True}, r"add_cross_attention=True.*is_decoder"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, r"single_label.*2"),
    ],
)
def test_config_refuses_values_out_of_range(changes, message):
    """At the latest where a model is made."""
    with pytest.raises(ValueError, match=message):
        mlm.XLMRobertaXLForSequenceClassification(mlm.XLMRobertaXLConfig(**(TINY | changes)))


def test_config_with_a_function_is_not_saved(tmp_path):
    config = mlm.XLMRobertaXLConfig(**TINY, hidden_act=torch.tanh)
    with pytest.raises(ValueError, match=r"hidden_act.*tanh"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
