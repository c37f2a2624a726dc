"""The family over tensor-parallel ranks and in pipeline stages: equal to one process.

One process is held to transformers by the other `test_family_*` files.
"""

from functools import partial
from typing import Any

import pytest
import torch

import mlm
from mlm.batch.labelled_batch import LabelledBatch
from mlm.family.stages import stage_layers
from parallel.engine.build import build_engine
from parallel.engine.interface import EngineSettings
from parallel.groups import make_grid
from parallel.keys import key
from parallel.layout import Layout
from parallel.sharding import shard_of, slice_of
from parallel.tensor.collectives import gather_from_group
from tests.ranks import run_ranks
from tests.state_reading import whole_weights

pytestmark = pytest.mark.ranks

TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 26,
    "type_vocab_size": 2,
    "initializer_range": 0.15,
    "attention_probs_dropout_prob": 0.0,  # along tp it is another mask on each rank
    "hidden_dropout_prob": 0.1,
}
DECODER = TINY | {"is_decoder": True, "add_cross_attention": True}
SEED, ROWS, SEQ_LEN = 5, 4, 12
MODELS = {
    "XLMRobertaXLModel": TINY,
    "XLMRobertaXLForMaskedLM": TINY,
    "XLMRobertaXLForCausalLM": DECODER,
    "XLMRobertaXLForSequenceClassification": TINY | {"num_labels": 3},
    "XLMRobertaXLForMultipleChoice": TINY,
    "XLMRobertaXLForTokenClassification": TINY | {"num_labels": 5},
    "XLMRobertaXLForQuestionAnswering": TINY | {"position_embedding_type": "relative_key_query"},
}
TRAINED = [name for name in MODELS if name != "XLMRobertaXLModel"]


def draw(seed: int, low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(name: str, config: dict) -> dict:
    """Rows with padding on the left and on the right, and labels that fit the class."""
    ids = draw(1, 4, 128, ROWS, SEQ_LEN)
    ids[0, :3] = ids[1, -5:] = 1
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    given["token_type_ids"] = draw(2, 0, 2, ROWS, SEQ_LEN)
    if name.endswith("LM"):
        given["labels"] = draw(3, 0, 128, ROWS, SEQ_LEN).masked_fill(ids == 1, -100)
    elif "Sequence" in name:
        given["labels"] = draw(3, 0, 3, ROWS)
    elif "Token" in name:
        given["labels"] = draw(3, 0, 5, ROWS, SEQ_LEN)
    elif "Question" in name:
        given |= {"start_positions": draw(3, 0, 15, ROWS), "end_positions": draw(4, 0, 15, ROWS)}
    elif "Choice" in name:
        given = {key: value.unflatten(0, (2, 2)) for key, value in given.items()}
        given["labels"] = draw(3, 0, 2, 2)
    if config.get("add_cross_attention"):
        generator = torch.Generator().manual_seed(6)
        given["encoder_hidden_states"] = torch.randn(ROWS, 7, 32, generator=generator)
        given["encoder_attention_mask"] = torch.ones(ROWS, 7).index_fill(1, torch.tensor([6]), 0)
        given["use_cache"] = True
    return given


def made(name: str, **options):
    config = mlm.XLMRobertaXLConfig(**MODELS[name])
    return getattr(mlm, name)(config, seed=SEED, **options).train()


def flat(output) -> dict[str, torch.Tensor]:
    """Every tensor of an output by its place in it."""
    found = {}
    for field, value in output.items():
        values = value if isinstance(value, tuple) else (value,)
        for number, item in enumerate(values):
            for place, tensor in enumerate(item if isinstance(item, tuple) else (item,)):
                found[f"{field}.{number}.{place}"] = tensor
    return found


def tensor_parallel(degree: int) -> None:
    """Every class on this rank's part beside the whole one: outputs, cache and gradients."""
    group = make_grid(Layout(tp=degree)).tp
    for name, config in MODELS.items():
        given = inputs_of(name, config) | {"output_hidden_states": True, "output_attentions": True}
        outputs = []
        for options in ({}, {"group": group}):
            model = made(name, **options)
            torch.manual_seed(9)  # of the dropout's keys
            output = model(**given)
            loss = output.loss if "loss" in output else output.pooler_output.square().sum()
            loss.backward()
            outputs.append((model, flat(output)))
        (whole, expected), (part, found) = outputs
        assert list(found) == list(expected)
        for field, tensor in expected.items():
            own = found[field]
            if field.startswith("past_key_values"):
                own = gather_from_group(own.movedim(1, -1), group).movedim(-1, 1)
            torch.testing.assert_close(own, tensor, rtol=0, atol=2e-5, msg=f"{name} {field}")
        gradients = dict(whole.named_parameters())
        split = 0
        for parameter_name, parameter in part.named_parameters():
            full, shard = gradients[parameter_name].grad, shard_of(parameter)
            split += shard is not None
            if full is None:
                assert parameter.grad is None
                continue
            what = f"{name} {parameter_name}"
            torch.testing.assert_close(
                parameter.grad, slice_of(full, shard), rtol=0, atol=5e-5, msg=what
            )
        assert split >= 8 * config["num_hidden_layers"], "nothing was split"


@pytest.mark.parametrize("degree", [2, 4])
def test_tensor_parallel_equals_whole(degree):
    run_ranks(degree, tensor_parallel, degree)


def decoded(degree: int) -> list[torch.Tensor]:
    """What a decoder generates and what surgery leaves, on this rank and on one process."""
    group = make_grid(Layout(tp=degree)).tp
    config = mlm.XLMRobertaXLConfig(**(DECODER | {"add_cross_attention": False}))
    prompts = draw(1, 4, 128, 3, 5)
    prompts[0, :2] = 1
    whole = mlm.XLMRobertaXLForCausalLM(config, seed=SEED).eval()
    part = mlm.XLMRobertaXLForCausalLM(config, seed=SEED, group=group).eval()
    assert torch.equal(*(m.generate(prompts, max_new_tokens=6) for m in (whole, part)))
    torch.manual_seed(torch.distributed.get_rank())  # ranks that would draw each for itself
    drawn = part.generate(prompts, max_new_tokens=6, do_sample=True, top_p=0.9)
    for model in (whole, part):
        model.prune_heads({0: [1, 2], 2: [0, 3]} if degree == 2 else {})
        model.resize_token_embeddings(160)
    logits = [model(prompts, logits_to_keep=1).logits for model in (whole, part)]
    assert logits[0].shape[-1] == 160
    torch.testing.assert_close(*logits, rtol=0, atol=2e-5)
    return [drawn]


@pytest.mark.parametrize("degree", [2, 4])
def test_tensor_parallel_decoder_generates_the_same_on_all_ranks(degree):
    results = run_ranks(degree, decoded, degree)
    for result in results:
        assert torch.equal(result[0], results[0][0])


MICRO_BATCHES, STEPS, LR = 2, 3, 0.05


def task_batches(name: str, step: int) -> list[LabelledBatch]:
    batches = []
    for number in range(MICRO_BATCHES):
        given = inputs_of(name, {})
        ids = (given["input_ids"] * 7 + 11 * step + number) % 124 + 4
        ids = torch.where(given["input_ids"] == 1, 1, ids)
        labels = given.get("labels")
        if labels is None:
            labels = torch.stack([given["start_positions"], given["end_positions"]], dim=1)
        rows = {"input_ids": ids, "attention_mask": given["attention_mask"]}
        rows["token_type_ids"] = given["token_type_ids"]
        if "Choice" in name:
            rows = {key: value.flatten(0, 1) for key, value in rows.items()}
        dropout_key = key(SEED, step, number)
        batches.append(
            LabelledBatch(
                labels=labels,
                choices=2,
                dropout_key=dropout_key,
                causal=configs()[name].get("is_decoder", False),
                **rows,
            )
        )
    return batches


def optimizer(named) -> torch.optim.Optimizer:
    # Not Adam: it would scale up the noise of `key.bias`, which has no true gradient.
    return torch.optim.SGD([p for _, p in named], lr=LR, momentum=0.9)


def staged(name: str, config) -> list:
    """Three steps through the engine's stages; losses, and this rank's weights."""
    kind = getattr(mlm, name)
    world = torch.distributed.get_world_size()
    grid = make_grid(Layout(tp=world // 2, pp=2))
    layers = stage_layers(kind, config, group=grid.tp, seed=SEED, seq_len=SEQ_LEN)
    micro = task_batches(name, 0)[0].input_ids.shape[0]
    settings = EngineSettings(micro, MICRO_BATCHES)
    engine = build_engine(layers, grid, optimizer, settings)
    losses = [engine.train_batch(task_batches(name, step), LR).loss for step in range(STEPS)]
    weights = {}
    for label, parameter, weight in whole_weights(engine):
        shard = shard_of(parameter)
        weights[label] = (None if shard is None else shard.dim, weight.clone())
    return [losses, weights]


def all_staged() -> dict[str, list]:
    return {
        name: staged(name, mlm.XLMRobertaXLConfig(**config)) for name, config in configs().items()
    }


def configs() -> dict[str, dict]:
    """Of the heads that train; a decoder in stages has no cross attention."""
    without = {name: config for name, config in MODELS.items() if name in TRAINED}
    without["XLMRobertaXLForCausalLM"] = TINY | {"is_decoder": True}
    return without


def arguments(name: str, batch: LabelledBatch) -> dict[str, torch.Tensor]:
    """What the class itself takes for a batch of its stages."""
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    }
    if "Choice" in name:
        given = {key: value.unflatten(0, (-1, 2)) for key, value in given.items()}
    if "Question" in name:
        starts, ends = batch.labels.unbind(-1)
        return given | {"start_positions": starts, "end_positions": ends}
    return given | {"labels": batch.labels}


def one_process(name: str, config) -> list:
    """The same steps of the class itself in a plain loop."""
    model = getattr(mlm, name)(config, seed=SEED).train()
    moved = optimizer(model.named_parameters())
    losses = []
    for step in range(STEPS):
        moved.zero_grad()
        batches = task_batches(name, step)
        total = 0.0
        for batch in batches:
            model.dropout_key = partial(int, batch.dropout_key)
            loss = model(**arguments(name, batch)).loss / len(batches)
            loss.backward()
            total += loss.item()
        moved.step()
        losses.append(total)
    return [losses, {label: p.detach() for label, p in model.named_parameters()}]


@pytest.mark.parametrize("world", [2, 4], ids=["pp2", "tp2-pp2"])
def test_stages_train_like_one_process(world):
    results = run_ranks(world, all_staged)
    for name, config in configs().items():
        losses, expected = one_process(name, mlm.XLMRobertaXLConfig(**config))
        assert losses[0] != pytest.approx(losses[-1], rel=1e-3), "nothing was learnt"
        found: dict[str, dict[Any, Any]] = {}
        for rank, result in enumerate(results):
            assert result[name][0] == pytest.approx(losses, rel=1e-5), name
            for label, (dim, weight) in result[name][1].items():
                parts = found.setdefault(label, {})
                tp_rank = rank % (world // 2)
                if tp_rank in parts:  # the tied words, on both stages
                    assert torch.equal(parts[tp_rank], weight)
                parts[tp_rank] = weight
                parts.setdefault("dim", dim)
        assert set(found) == {
            label for label in expected if "pooler" not in label or "Choice" in name
        }
        for label, parts in found.items():
            dim = parts.pop("dim")
            whole = parts[0] if dim is None else torch.cat(list(parts.values()), dim)
            difference = (whole - expected[label]).norm()
            norm = 0.1 if noise(name, label) else expected[label].norm()
            assert difference <= 1e-5 * norm, f"{name} {label}: {difference}"


def noise(name: str, label: str) -> bool:
    """Whether it has no true gradient: softmax ignores what all keys, choices or places share."""
    shared = {"Choice": ["classifier.bias"]}
    shared["Question"] = ["qa_outputs.bias", "roberta.encoder.LayerNorm.bias"]
    own = [label for task, labels in shared.items() if task in name for label in labels]
    return label.endswith("key.bias") or label in own
