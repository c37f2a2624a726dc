"""A run is built from its settings, and a step's micro-batches are dealt to data ranks."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mlm.data.checks
import mlm.tasks.pretraining.batches
import mlm.tasks.pretraining.task
import mlm.training.build
from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.config import TrainConfig
from mlm.training.build import TrainingRun, build
from parallel.layout import Layout
from tests.ranks import run_ranks
from tests.training_fixtures import config


def run_of(dp: int, dp_rank: int, seed: int = 1, micro_batches: int = 8) -> TrainingRun:
    """The run of one data rank, whose micro-batches are identified by their only token."""

    def micro_batch(step: int, number: int) -> MicroBatch:
        ids = torch.full((1, 1), 100 * step + number)
        none = torch.zeros(1, 0, dtype=torch.long)
        return MicroBatch(ids, Visibility((1, 1, 1)), none, none, torch.zeros(1))

    def batches(step: int, numbers) -> list[MicroBatch]:
        return [micro_batch(step, number) for number in numbers]

    task: Any = SimpleNamespace(micro_batches=micro_batches, batches=batches)
    grid: Any = SimpleNamespace(layout=Layout(dp=dp), dp_rank=dp_rank)
    unused: Any = None
    return TrainingRun(replace(TrainConfig(), seed=seed), task, grid, unused, unused)


def dealt(dp: int, seed: int = 1, step: int = 2) -> dict[int, MicroBatch]:
    """Scaled micro-batches of all data ranks by their number in the global batch."""
    found = {}
    for dp_rank in range(dp):
        run = run_of(dp, dp_rank, seed)
        for batch in run.scaled(run.micro_batches(step), step, 40):
            found[int(batch.input_ids) - 100 * step] = batch
    return found


@pytest.mark.parametrize("dp", [2, 4, 8])
def test_micro_batches_are_split_over_data_ranks_with_the_same_dropout_keys(dp):
    single, shared = dealt(1), dealt(dp)
    assert sorted(shared) == sorted(single) == list(range(8))
    assert {n: b.dropout_key for n, b in shared.items()} == {
        n: b.dropout_key for n, b in single.items()
    }
    numbers = [int(batch.input_ids) for batch in run_of(dp, 1).micro_batches(0)]
    assert numbers == list(range(1, 8, dp))
    # The engine gives the mean over all micro-batches; times this it is the mean over 40 tokens.
    assert {batch.loss_scale for batch in shared.values()} == {8 / 40}


def test_micro_batches_have_distinct_dropout_keys():
    keys = [
        batch.dropout_key
        for seed, step in ((1, 2), (1, 3), (2, 2))
        for batch in dealt(2, seed, step).values()
    ]
    assert len(set(keys)) == 24


def engine_settings(train_config) -> dict:
    """The settings and the optimizer that `build` hands to the engine."""
    found = {}

    def recorded_engine(layers, grid, make_optimizer, settings):
        groups = make_optimizer([("a.weight", torch.nn.Parameter(torch.zeros(1)))]).param_groups
        found.update(asdict(settings), **{name: groups[0][name] for name in ("betas", "eps")})
        found["layers"] = len(layers)

    def recording(name: str, module: Any) -> None:
        real = getattr(module, name)

        def recorded(*arguments, **named):
            found[name] = [*arguments, *named.values()]
            return real(*arguments, **named)

        setattr(module, name, recorded)

    mlm.training.build.build_engine = recorded_engine
    recording("Masking", mlm.tasks.pretraining.batches)
    recording("TrainingBatches", mlm.tasks.pretraining.batches)
    recording("masked_lm_layers", mlm.tasks.pretraining.task)
    recording("SampleOrder", mlm.data.checks)
    recording("Mix", mlm.data.checks)
    task: Any = build(train_config).task
    found["blocks"] = len(task.heldout)
    found["SampleOrder"] = [found["SampleOrder"][2], *found["SampleOrder"][4:]]
    found["Mix"] = found["Mix"][1:]
    found["TrainingBatches"] = found["TrainingBatches"][3:]
    found["masked_lm_layers"] = found["masked_lm_layers"][2:]
    return found


@pytest.mark.ranks
def test_build_gives_the_engine_the_settings_of_the_run():
    settings = config(
        seed=5,
        data={
            "mask_ratio": 0.3,
            "mask_ratio_schedule": [[10, 0.4]],
            "masking": "span",
            "span_p": 0.5,
            "span_max": 4,
            "isolate_documents": True,
            "alpha": 0.7,
            "alpha_schedule": [[10, 0.5]],
            "weights": {"en": 2.0},
            "shuffle_window": 3,
        },
        train={
            "dtype": "bf16",
            "recompute": True,
            "micro_batch_size": 4,
            "attention": "unfused",
        },
        optim={"clip": 0.25, "betas": [0.7, 0.8], "eps": 1e-3},
    )
    (found,) = run_ranks(1, engine_settings, settings)
    few_blocks = found.pop("blocks")
    assert found == {
        "micro_batch_size": 4,
        "grad_accum_steps": 2,
        "clip": 0.25,
        "dtype": torch.bfloat16,
        "recompute": True,
        "betas": (0.7, 0.8),
        "eps": 1e-3,
        "layers": 4 + 5,
        "Masking": [0.3, 400, ((10, 0.4),), "span", None, 0.5, 4],
        "SampleOrder": [32, 5, 3],  # tokens of a block, seed, window
        # Alphas at samples, weights, and limits, of which there are none.
        "Mix": [[(0, 0.7), (80, 0.5)], [1.0, 2.0, 1.0, 1.0], [None] * 4],
        "TrainingBatches": [5, 4, 8, True],  # seed, sizes, whether documents are kept apart
        "masked_lm_layers": [5, "unfused", 32, 13, None],  # seed, path, tokens and masks of a block
    }
    all_evaluated = replace(settings, eval=replace(settings.eval, blocks_per_language=0))
    all_blocks = run_ranks(1, engine_settings, all_evaluated)[0]["blocks"]
    assert few_blocks < all_blocks


def dtypes() -> list[str]:
    """Of the model's weights, and of the accumulated gradients."""
    engine: Any = build(config(train={"dtype": "bf16"})).engine
    return [str(dtype) for dtype in engine.deepspeed.get_data_types()]


@pytest.mark.ranks
def test_build_accumulates_bf16_gradients_in_fp32():
    assert run_ranks(1, dtypes)[0] == ["torch.bfloat16", "torch.float32"]
