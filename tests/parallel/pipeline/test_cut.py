"""Stages of one run of layers and of several."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from parallel.engine.deepspeed_adapter.build import start_deepspeed
from parallel.pipeline.cut import cut
from parallel.pipeline.stages import StageLayer, WholeModel, canonical_name
from tests.ranks import run_ranks

LAYERS = 8


def linear(number: int) -> torch.nn.Module:
    torch.manual_seed(number)
    return torch.nn.Linear(4, 4)


def layers() -> list[StageLayer]:
    rows = [
        StageLayer(f"layer.{n}", lambda n=n: linear(n), 20, 32.0, lambda m, x, _: m(x).tanh())
        for n in range(LAYERS - 1)
    ]
    last = StageLayer(
        "head", lambda: linear(99), 20, 32.0, lambda m, x, b: (m(x).sum() * b.scale, {"x": x})
    )
    return [*rows, last]


@pytest.mark.parametrize(("stages", "runs"), [(1, 1), (4, 1), (2, 2), (2, 4), (1, 3)])
def test_cut_deals_every_layer_once_in_turn(stages, runs):
    found = cut(layers(), stages, runs)
    assert [len(stage) for stage in found] == [runs] * stages
    in_turn = itertools.chain(*(zip(*found, strict=True)))
    assert list(itertools.chain(*in_turn)) == list(range(LAYERS))


def test_cut_refuses_more_runs_than_layers():
    with pytest.raises(ValueError, match="12 stages cannot be cut from 8 layers"):
        cut(layers(), 4, 3)


def interleaved() -> tuple[list[str], list[float]]:
    """Runs micro-batches 1 and 0 through two stages of two runs each, by hand: the names of this
    rank's parameters, and the losses as the last run gives them."""
    from parallel.engine.deepspeed_adapter.stage_module import StageModule

    start_deepspeed()
    topology: Any = PipeModelDataParallelTopology(num_pp=2, num_mp=1, num_dp=1)
    module = StageModule(layers(), cut(layers(), 2, 2), topology, recompute=False)
    rank, losses = dist.get_rank(), []
    module.batches = [SimpleNamespace(scale=1.0), SimpleNamespace(scale=10.0)]
    for module.number in (1, 0):
        x = torch.ones(1, 4)
        for module.run, stage in itertools.product(range(2), range(2)):
            if stage == rank:
                x = module(x).detach()
            x = x if x.dim() else torch.zeros(1, 4)  # the loss is not sent
            if rank == 1 and (module.run, stage) == (1, 1):
                losses.append(float(module.outputs[module.number]["x"].sum()))
            dist.broadcast(x, stage)
    names = [canonical_name(module.ordered, name) for name, _ in module.named_parameters()]
    assert [layer.name for layer in module.local_layers] == list(
        dict.fromkeys(name.rpartition(".")[0] for name in names)
    )
    return names, losses


@pytest.mark.ranks
def test_stage_of_two_runs_equals_the_whole_model():
    (first, _), (second, losses) = run_ranks(2, interleaved)
    assert [name for name in first if name.endswith("weight")] == [
        f"layer.{n}.weight" for n in (0, 1, 4, 5)
    ]
    assert second[-1] == "head.bias"
    model = WholeModel(layers())
    expected = float(model(torch.ones(1, 4), SimpleNamespace(scale=1.0))[1]["x"].sum())
    assert losses == pytest.approx([expected, expected])
