"""Forward and backward hooks: each module is called, and what a hook replaces has its effect."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mlm
from mlm.batch.labelled_batch import LabelledBatch
from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.family.stages import stage_layers
from parallel.pipeline.stages import WholeModel
from tests.family.family_fixtures import TINY, pair, same, scalar, tokens
from tests.family.family_wrapped import CLASSES, MASKED, inputs_of
from tests.model.test_model import CONFIG, pretrained


def called(model: nn.Module, given: dict[str, Tensor]) -> set[str]:
    """The names of the modules whose hooks fire forward and backward, a shared one's every name."""
    forward, backward = set(), set()
    handles = []
    for name, module in model.named_modules(remove_duplicate=False):
        handles.append(module.register_forward_hook(lambda *_, name=name: forward.add(name)))
        handles.append(module.register_full_backward_hook(lambda *_, name=name: backward.add(name)))
    scalar(model(**given)).backward()
    for handle in handles:
        handle.remove()
    # A module whose output is a dict, or needs no gradient, has no backward hook in PyTorch.
    return forward if backward else set()


@pytest.mark.parametrize("cls_name", CLASSES)
def test_hooks_fire_on_every_module_with_parameters_and_on_those_of_transformers(cls_name):
    ours, theirs = (model.train() for model in pair(cls_name, **CLASSES[cls_name]))
    found = called(ours, inputs_of(cls_name))
    lists = {name for name, module in ours.named_modules() if isinstance(module, nn.ModuleList)}
    with_parameters = {name for name, one in ours.named_modules() if list(one.parameters())}
    assert with_parameters - lists <= found
    assert called(theirs, inputs_of(cls_name)) <= found


def test_hooks_fire_on_cross_attention_and_under_checkpointing():
    ours = pair(MASKED, is_decoder=True, add_cross_attention=True)[0].train()
    ours.gradient_checkpointing_enable()
    given = inputs_of(MASKED) | {"encoder_hidden_states": torch.randn(3, 5, 32)}
    crossing = {name for name, _ in ours.named_modules() if ".crossattention" in name}
    idle = {name for name in crossing if name.endswith("self.dropout")}  # a kernel reads its p
    assert crossing - idle <= called(ours, given)


def zeros(module: nn.Module, given: Any, output: Any) -> Any:
    """An output of zeros, of the kind of the module's own."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    output["last_hidden_state"] = torch.zeros_like(output["last_hidden_state"])
    return output


REPLACED = [
    "roberta.embeddings",
    "roberta.embeddings.word_embeddings",
    "roberta.embeddings.token_type_embeddings",
    "roberta.embeddings.position_embeddings",
    "roberta.embeddings.dropout",
    "roberta.encoder",
    "roberta.encoder.layer.0",
    "roberta.encoder.layer.0.attention",
    "roberta.encoder.layer.0.attention.self",
    "roberta.encoder.layer.0.attention.self.query",
    "roberta.encoder.layer.0.attention.self.value",
    "roberta.encoder.layer.0.attention.output",
    "roberta.encoder.layer.0.attention.output.dense",
    "roberta.encoder.layer.0.attention.output.dropout",
    "roberta.encoder.layer.0.attention.self_attn_layer_norm",
    "roberta.encoder.layer.0.intermediate",
    "roberta.encoder.layer.0.intermediate.dense",
    "roberta.encoder.layer.0.intermediate.intermediate_act_fn",
    "roberta.encoder.layer.0.output",
    "roberta.encoder.layer.0.output.dense",
    "roberta.encoder.layer.0.LayerNorm",
    "roberta.encoder.layer.2",
    "roberta.encoder.LayerNorm",
]
HEADS = {
    MASKED: ["lm_head", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "roberta"],
    "XLMRobertaXLForSequenceClassification": [
        "classifier",
        "classifier.dense",
        "classifier.out_proj",
    ],
    "XLMRobertaXLForTokenClassification": ["classifier", "dropout"],
    "XLMRobertaXLForMultipleChoice": [
        "roberta.pooler",
        "roberta.pooler.dense",
        "roberta.pooler.activation",
        "classifier",
        "dropout",
    ],
    "XLMRobertaXLForQuestionAnswering": ["qa_outputs"],
}


@pytest.mark.parametrize("cls_name", HEADS)
def test_replaced_outputs_have_the_effect_they_have_in_transformers(cls_name):
    models = pair(cls_name)
    names = HEADS[cls_name] + (REPLACED if cls_name == MASKED else [])
    given = inputs_of(cls_name)
    place = "start_logits" if "Question" in cls_name else "logits"
    with torch.no_grad():
        plain = models[0](**given)[place]
        for name in names:
            handles = [one.get_submodule(name).register_forward_hook(zeros) for one in models]
            found, expected = (one(**given) for one in models)
            same(found[place], expected[place], what=name)
            same(found.loss, expected.loss, what=name)
            assert not torch.allclose(found[place], plain), name
            for handle in handles:
                handle.remove()


def test_backward_hooks_change_gradients_as_in_transformers():
    ours, theirs = (model.train() for model in pair(MASKED))
    given = inputs_of(MASKED)
    for model in (ours, theirs):
        module = model.get_submodule("roberta.encoder.layer.1")
        module.register_full_backward_hook(
            lambda module, to_inputs, to_output: (to_inputs[0] * 3, *to_inputs[1:])
        )
        model(**given).loss.backward()
    for name in ("roberta.encoder.layer.0.output.dense.weight", "lm_head.dense.weight"):
        same(ours.get_parameter(name).grad, theirs.get_parameter(name).grad, 5e-5, name)


def fired(model: nn.Module, call: Any) -> tuple[set[str], set[str]]:
    """Names of the modules that a call runs, and of all that have parameters."""
    found: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: found.add(name))
    call()
    whole = {name for name, module in model.named_modules() if list(module.parameters())}
    return found, whole - {"tied_modules"}


def test_hooks_fire_on_every_module_of_pretraining():
    model = pretrained(CONFIG)[0].train()
    ids = tokens(3, 20)
    places = torch.zeros(3, 1, dtype=torch.long)
    batch = MicroBatch(ids, Visibility((3, 20, 20)), places, places + 5, places[:, 0])
    found, whole = fired(model, lambda: model(ids, batch))
    assert whole <= found


@pytest.mark.parametrize("cls_name", [name for name in CLASSES if "For" in name])
def test_hooks_fire_on_every_module_of_stages(cls_name):
    config = mlm.XLMRobertaXLConfig(**TINY, **CLASSES[cls_name])
    model = WholeModel(stage_layers(getattr(mlm, cls_name), config)).train()
    given = inputs_of(cls_name)
    if "Question" in cls_name:
        labels = torch.stack([given["start_positions"], given["end_positions"]], -1)
    else:
        labels = given["labels"]
    choices = 3 if "Multiple" in cls_name else 1
    rows: Any = {name: given[name].view(-1, 20) for name in ("input_ids", "attention_mask")}
    batch = LabelledBatch(**rows, labels=labels, choices=choices, causal=config.is_decoder)
    found, whole = fired(model, lambda: model(batch.inputs, batch))
    assert whole <= found
