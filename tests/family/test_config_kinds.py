"""Values of the config that are of another kind than their key's, or name what is not there."""

import json
import math

import pytest
import torch

import mlm
from mlm.errors import DataError
from mlm.hf.export import export
from mlm.hf.importing import import_model
from mlm.trained.opening import open_trained
from tests.family.family_fixtures import TINY, our_model, tokens
from tests.published_folders import MASKED, folder_of, left_nothing, model

CASES = [
    ("layer_norm_eps", "1e-5", "a number"),
    ("layer_norm_eps", None, "a number"),
    ("initializer_range", [0.02], "a number"),
    ("hidden_dropout_prob", "0.1", "a number"),
    ("hidden_dropout_prob", None, "a number"),
    ("attention_probs_dropout_prob", True, "a number"),
    ("classifier_dropout", "0.1", "a number or None"),
    ("label_smoothing", None, "a number"),
    ("pad_token_id", None, "a whole number"),
    ("pad_token_id", 1.0, "a whole number"),
    ("bos_token_id", "0", "a whole number or None"),
    ("eos_token_id", "2", "a whole number, a list of them or None"),
    ("eos_token_id", [2, "3"], "a whole number, a list of them or None"),
    ("max_position_embeddings", None, "a whole number"),
    ("max_position_embeddings", 40.0, "a whole number"),
    ("hidden_size", "32", "a whole number"),
    ("num_hidden_layers", None, "a whole number"),
    ("vocab_size", True, "a whole number"),
    ("num_labels", "3", "a whole number"),
    ("num_labels", 3.0, "a whole number"),
    ("id2label", ["no", "yes"], "a map from ids to labels"),
    ("id2label", "no", "a map from ids to labels"),
    ("id2label", {}, "a map from ids to labels"),
    ("id2label", {"first": "no"}, "a map from ids to labels"),
    ("label2id", ["no", "yes"], "a map from labels to ids"),
    ("label2id", {"no": "0"}, "a map from labels to ids"),
    ("pruned_heads", "x", "a map from layers to lists of heads or None"),
    ("pruned_heads", {"0": 1}, "a map from layers to lists of heads or None"),
    ("pruned_heads", {"first": [1]}, "a map from layers to lists of heads or None"),
    ("pruned_heads", {"0": ["1"]}, "a map from layers to lists of heads or None"),
    ("architectures", "XLMRobertaXLModel", "a list of classes or None"),
    ("architectures", [3], "a list of classes or None"),
    ("is_decoder", "false", "True or False"),
    ("use_cache", 1, "True or False"),
    ("return_dict", None, "True or False"),
    ("hidden_act", 3, "the name of a function, or a function of a tensor"),
    ("position_embedding_type", None, "a text"),
    ("problem_type", ["regression"], "a text or None"),
]
PRUNED = [
    ({"0": [7]}, "head 7 of layer 0, and there are 4 heads"),
    ({"0": [-1]}, "head -1 of layer 0, and there are 4 heads"),
    ({"1": [0, 4]}, "head 4 of layer 1, and there are 4 heads"),
    ({"3": [0]}, "layer 3, and there are 3 layers"),
    ({"9": []}, "layer 9, and there are 3 layers"),
]


def one_sentence(error: Exception, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in (*parts, "; "):
        assert part in text, text


@pytest.mark.parametrize(("name", "value", "rule"), CASES, ids=str)
def test_config_refuses_values_of_another_type(name, value, rule, tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        mlm.XLMRobertaXLConfig(**TINY | {name: value})
    one_sentence(caught.value, f"{name}={value!r} is not {rule}; ")
    config = mlm.XLMRobertaXLConfig(**TINY)
    before = config.to_dict()
    with pytest.raises(ValueError, match=f"{name}="):
        setattr(config, name, value)
    assert config.to_dict() == before
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(DataError) as caught:
        mlm.XLMRobertaXLModel.from_pretrained(tmp_path)
    one_sentence(caught.value, f"{path} has {name}=", f" is not {rule}; ")


@pytest.mark.parametrize("pruned", [each[0] for each in PRUNED], ids=str)
def test_config_refuses_pruned_heads_that_do_not_exist(pruned):
    said = next(said for each, said in PRUNED if each is pruned)
    config = mlm.XLMRobertaXLConfig(**TINY, pruned_heads=pruned)
    for made in (mlm.XLMRobertaXLModel, mlm.XLMRobertaXLForMaskedLM):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            made(config)
        one_sentence(caught.value, "pruned_heads={", said, "; choose from 0 to ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_norm_eps": "1e-5"}, r"layer_norm_eps='1e-5' is not a number; give one"),
        ({"pad_token_id": None}, r"pad_token_id=None is not a whole number; give one"),
        ({"id2label": ["a"]}, r"id2label=\['a'\] is not a map from ids to labels; give one"),
        ({"pruned_heads": {"0": [7]}}, r"pruned_heads=\{0: \[7\]\} names head 7 of layer 0"),
        ({"pruned_heads": {"5": [0]}}, r"pruned_heads=\{5: \[0\]\} names layer 5, and there are 3"),
    ],
    ids=str,
)
def test_config_error_names_the_file(changes, said, tmp_path):
    source = folder_of(model(MASKED), tmp_path / "source")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    for run in (import_model, export):
        with pytest.raises(DataError, match=rf"config\.json has {said}"):
            run(str(source), str(tmp_path / "out"))
    assert left_nothing(tmp_path, "source")


def test_config_takes_null_for_optional_keys(tmp_path, capsys):
    """A model without ends, or with several, is imported and exported as it is."""
    for name, ends in (("none", None), ("two", [2, 3])):
        config = mlm.XLMRobertaXLConfig(
            **TINY | {"bos_token_id": None, "eos_token_id": ends, "pruned_heads": None}
        )
        made = mlm.XLMRobertaXLForMaskedLM(config, seed=1)
        made.save_pretrained(tmp_path / name)
        import_model(str(tmp_path / name), str(tmp_path / f"{name}-in"), "none")
        export(str(tmp_path / f"{name}-in"), str(tmp_path / f"{name}-out"))
        again = open_trained(tmp_path / f"{name}-out").config
        assert (again.bos_token_id, again.eos_token_id) == (None, ends)


def test_config_keeps_values_that_fit():
    config = mlm.XLMRobertaXLConfig(
        **TINY | {"layer_norm_eps": 0, "hidden_dropout_prob": 0, "pruned_heads": {"1": {3, 0}}}
    )
    assert config.pruned_heads == {1: [0, 3]}
    config.pruned_heads = {"0": (2,)}
    assert config.pruned_heads == {0: [2]}
    labels = mlm.XLMRobertaXLConfig(id2label={"0": 0, "1": 1.5}, architectures=("A",))
    assert labels.id2label == {0: "0", 1: "1.5"}
    with pytest.raises(ValueError, match="layer_norm_eps=nan is not a number from 0 on"):
        our_model("XLMRobertaXLModel", layer_norm_eps=math.nan)
    function = our_model("XLMRobertaXLModel", hidden_act=torch.tanh)
    assert function(tokens()).last_hidden_state.isfinite().all()
