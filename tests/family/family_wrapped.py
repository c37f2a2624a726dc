"""Models as PyTorch's wrappers train them over two ranks, ours and transformers'."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from tests.family.family_fixtures import gradients_of, padded, pair, scalar, tokens

RANKS = 2
CLASSES = {
    "XLMRobertaXLForMaskedLM": {},
    "XLMRobertaXLForSequenceClassification": {},
    "XLMRobertaXLForTokenClassification": {},
    "XLMRobertaXLForQuestionAnswering": {},
    "XLMRobertaXLForMultipleChoice": {},
    "XLMRobertaXLForCausalLM": {"is_decoder": True},
    "XLMRobertaXLModel": {},
}
MASKED = "XLMRobertaXLForMaskedLM"


def inputs_of(cls_name: str, rank: int = 0) -> dict[str, Tensor]:
    """Padded rows with their labels, others on every rank."""
    ids, mask = padded((20, 13 - rank, 4))
    ids = torch.where(mask == 1, (ids + 7 * rank) % 124 + 4, ids)
    given = {"input_ids": ids, "attention_mask": mask}
    labels = {
        "XLMRobertaXLForMaskedLM": {"labels": tokens(seed=5 + rank).masked_fill(ids % 3 > 0, -100)},
        "XLMRobertaXLForCausalLM": {"labels": ids.masked_fill(mask == 0, -100)},
        "XLMRobertaXLForSequenceClassification": {"labels": torch.tensor([0, 1, rank])},
        "XLMRobertaXLForTokenClassification": {"labels": ids % 2},
        "XLMRobertaXLForQuestionAnswering": {
            "start_positions": torch.tensor([rank, 3, 0]),
            "end_positions": torch.tensor([4, 5, 2]),
        },
        "XLMRobertaXLForMultipleChoice": {"labels": torch.tensor([rank])},
    }
    if cls_name == "XLMRobertaXLForMultipleChoice":
        given = {name: tensor.unsqueeze(0) for name, tensor in given.items()}
    return given | labels.get(cls_name, {})


def _layers(module: nn.Module) -> list[nn.Module]:
    base: Any = getattr(module, "roberta", module)
    return list(base.encoder.layer)


def ddp(model: Any, checkpointing: bool = False, **options: Any) -> nn.Module:
    if checkpointing:
        model.gradient_checkpointing_enable()
    return DistributedDataParallel(model, **options)


def fsdp1(model: nn.Module) -> nn.Module:
    layers = set(map(id, _layers(model)))
    policy = partial(lambda_auto_wrap_policy, lambda_fn=lambda module: id(module) in layers)
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=cpu
    )


def fsdp2(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": ddp,
    "DDP, static_graph": partial(ddp, static_graph=True),
    "DDP, find_unused_parameters": partial(ddp, find_unused_parameters=True),
    "DDP, gradient_as_bucket_view": partial(ddp, gradient_as_bucket_view=True),
    "DDP, static_graph, checkpointing": partial(ddp, static_graph=True, checkpointing=True),
    "FSDP1": fsdp1,
    "FSDP2": fsdp2,
}


def passes(wrapped: nn.Module, cls_name: str) -> dict[str, Tensor]:
    """Whole gradients by the model's names after the second pass: with `static_graph` it is not as
    the first one."""
    given = inputs_of(cls_name, dist.get_rank())
    for _ in range(2):
        wrapped.zero_grad()
        scalar(wrapped(**given)).backward()
    if isinstance(wrapped, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
            return _gradients(wrapped)
    return _gradients(wrapped)


def _gradients(wrapped: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in wrapped.named_parameters():
        if parameter.grad is not None:
            gradient: Any = parameter.grad
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            found[name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")] = whole.clone()
    return found


def mean_gradients(model: nn.Module, cls_name: str) -> dict[str, Tensor]:
    """The mean over the ranks' inputs of what one process gives."""

    def of_rank(rank: int) -> dict[str, Tensor]:
        return gradients_of(model, lambda: scalar(model(**inputs_of(cls_name, rank))))

    each = [of_rank(rank) for rank in range(RANKS)]
    return {name: sum(one[name] for one in each) / RANKS for name in each[0]}  # pyright: ignore


def differences(way: str, cls_names: list[str]) -> dict[str, tuple[float, float, float]]:
    """On a rank: the largest difference of a gradient under `way`, for each class: of ours from
    the mean, of ours from transformers' so wrapped, and of transformers' from the mean."""
    found = {}
    for cls_name in cls_names:
        ours, theirs = (model.train() for model in pair(cls_name, **CLASSES[cls_name]))
        mean = mean_gradients(ours, cls_name)
        others = mean_gradients(theirs, cls_name)
        made, made_there = (passes(WAYS[way](one), cls_name) for one in (ours, theirs))
        found[cls_name] = (
            _largest(made, mean),
            _largest(made, made_there),
            _largest(made_there, others),
        )
    return found


def _largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """A gradient that is missing counts as zeros, which FSDP gives in its place."""
    names = found.keys() | expected.keys()
    zero = torch.zeros(())
    return max(
        float((found.get(name, zero) - expected.get(name, zero)).abs().max()) for name in names
    )
