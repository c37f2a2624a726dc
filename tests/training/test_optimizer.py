"""Decay groups, and AdamW itself."""

import torch

from mlm import XLMRobertaXLConfig, XLMRobertaXLForMaskedLM
from mlm.config import OptimConfig
from mlm.training.optimizer import decays, make_adamw


def test_adamw_decays_matrices_but_not_biases_and_norms():
    config = XLMRobertaXLConfig(128, 16, 1, 2, 32)
    parameters = dict(XLMRobertaXLForMaskedLM(config).named_parameters())
    for name, parameter in parameters.items():
        assert decays(name) == (parameter.dim() == 2), name
    optimizer = make_adamw(list(parameters.items()), OptimConfig(weight_decay=0.1))
    first, second = optimizer.param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert len(first["params"]) + len(second["params"]) == len(parameters)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_adamw_unfused_step_is_independent_of_the_offset():
    """Tied weights lie at different offsets in each stage's partition, and stay equal."""
    generator = torch.Generator().manual_seed(1)
    values, *gradients = torch.randn(4, 100, generator=generator)
    found = []
    for count in range(1, 100):
        weight = torch.nn.Parameter(values[:count].clone())
        optimizer = make_adamw([("weight", weight)], OptimConfig(), fused=False)
        for gradient in gradients:
            weight.grad = gradient[:count].clone()
            optimizer.step()
        found.append(weight.detach())
    assert all(torch.equal(found[-1][: len(part)], part) for part in found)
