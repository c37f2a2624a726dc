"""One interface over DeepSpeed's two engines.

`PipelineEngine` with ZeRO-1 runs whenever `zero` is 1, without pipeline stages, too; the plain
engine runs ZeRO-2 and 3. ZeRO-0 is never used: DeepSpeed clips wrongly there with a pipeline,
and in bf16 it takes another optimizer.
"""

import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from parallel.groups import ProcessGrid
from parallel.pipeline.stages import StageLayer, WholeModel, balance, canonical_name

NEVER = 10**12  # steps between two lines that DeepSpeed prints
SLACK = 1e-3  # of a sum of squares in another order

Judge = Callable[[float, float], bool]  # of a step's loss and gradient norm; True: apply it


@dataclass(frozen=True)
class EngineSettings:
    micro_batch_size: int
    grad_accum_steps: int
    clip: float = 0.0  # the largest gradient norm; 0: no clipping
    dtype: torch.dtype = torch.float32
    recompute: bool = False


class Engine:
    """Trains the layers of a model over a process grid.

    Made by `build_engine`. A micro-batch is any object with `inputs` (the first layer's tensor)
    and `to(device)`; layers see it as their second argument.

    judge: sees the loss and the gradient norm of each step before weights and moments change, and
        where it says no on one rank, they change on none. None: only a norm that is not finite is
        refused
    applied: whether the last step changed them
    refused_by: the highest rank that said no to the last step; None where the norm is not finite
    """

    def __init__(self, engine, model: nn.Module, optimizer, layers, grid: ProcessGrid):
        self.deepspeed, self.model, self.optimizer = engine, model, optimizer
        self.layers: Sequence[StageLayer] = layers
        self.grid = grid
        self.device: torch.device = engine.device
        self.judge: Judge | None = None
        self.applied, self.refused_by = True, None
        self._judged = False  # the step that is under way
        self._loss = self._own_norm = 0.0  # its mean loss, the norm of this rank's gradients
        self._step, engine.optimizer.step = engine.optimizer.step, self._look_and_step
        self._apply, optimizer.step = optimizer.step, self._apply_if_good

    def train_batch(self, batches: Sequence[Any], lr: float) -> float:
        """One optimizer step over this data rank's micro-batches.

        Returns the mean of the layers' losses over all micro-batches of all data ranks, the same
        number on every rank. A layer that scales the sum of its losses by
        `grad_accum_steps * dp / N` thus gives the mean over N, exactly. A step that is not
        `applied` may be made again, as if it had not been.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._judged, self.refused_by = False, None
        loss = self._train_batch([batch.to(self.device) for batch in batches])
        # DeepSpeed itself leaves out a step whose norm is not finite, on all ranks.
        self.applied = self.refused_by is None and not self.deepspeed.optimizer.overflow
        return loss

    def evaluate(self, batches: Sequence[Any]) -> None:
        """Forward passes without gradients or dropout; layers keep what they find."""
        self._evaluate([batch.to(self.device) for batch in batches])

    @property
    def grad_norm(self) -> float:
        """The norm of the last step's gradient over all ranks, before clipping."""
        return float(self.deepspeed.get_global_grad_norm())

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """This rank's parameters under their names in a checkpoint, in the same order on all
        data ranks."""
        return [(canonical_name(self.layers, n), p) for n, p in self.model.named_parameters()]

    def _look_and_step(self) -> None:
        """What DeepSpeed calls when the gradients of a step are complete.

        Its norm does not have the gradients of all ranks: of what is not sharded, and of copies of
        a tied weight, it takes one, and in bf16 each data rank goes by its own copy of them all.
        """
        if self.judge is not None:
            self._loss = self._own_loss()
            if self.grid.layout.world_size > 1:
                self._compare_gradients()
        self._step()

    def _compare_gradients(self) -> None:
        """Sees to it that no rank alone finds its gradients not finite; a collective."""
        layout, gradients = self.grid.layout, self._gradients()
        self._own_norm = float(nn.utils.get_total_norm(gradients))
        wrong = not math.isfinite(self._own_norm)
        found = torch.tensor([self._loss, wrong], dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        loss, wrongs = found.tolist()
        self._loss = loss / (layout.tp * layout.dp)
        if wrongs and gradients:  # so that all leave this step out, and none waits for another
            gradients[0].view(-1)[:1] = math.inf

    def _apply_if_good(self) -> None:
        """What it then calls to change this rank's masters, once for each group of them."""
        if self.judge is not None and not self._judged:
            self._judged = True
            self.refused_by = self._refused_by(self.judge)
        if self.refused_by is None:
            self._apply()

    def _refused_by(self, judge: Judge) -> int | None:
        """The highest rank that refuses the step that is due; a collective."""
        norm = float(self.deepspeed.optimizer._global_grad_norm)
        # What a rank has is a part of the whole, also where the norm does not look.
        good = judge(self._loss, norm) and self._own_norm <= norm * (1 + SLACK)
        refusing = torch.tensor(-1 if good else self.grid.rank, device=self.device)
        if self.grid.layout.world_size > 1:
            dist.all_reduce(refusing, dist.ReduceOp.MAX)
        return int(refusing) if refusing >= 0 else None

    def _gradients(self) -> list[torch.Tensor]:
        """Those of a step that this rank has, reduced and not yet clipped."""
        wrapped = self.deepspeed.optimizer
        if hasattr(wrapped, "fp32_groups_gradients_flat"):  # stage 1 in bf16
            return list(wrapped.fp32_groups_gradients_flat)
        groups = wrapped.averaged_gradients.values()
        return [each for group in groups for each in group or () if each is not None]

    def _own_loss(self) -> float:
        """The mean loss of this data rank's micro-batches, where they end; 0 on other stages."""
        raise AssertionError("an engine is made by build_engine")

    def _train_batch(self, batches: Sequence[Any]) -> float:
        raise AssertionError("an engine is made by build_engine")

    def _evaluate(self, batches: Sequence[Any]) -> None:
        raise AssertionError("an engine is made by build_engine")


class _Pipelined(Engine):
    model: Any  # a PipelineStages, whose module imports DeepSpeed

    def _own_loss(self) -> float:
        if not self.grid.is_last_stage:
            return 0.0
        return float(self.deepspeed.total_loss) / self.deepspeed.gradient_accumulation_steps()

    def _train_batch(self, batches: Sequence[Any]) -> float:
        self.model.batches = iter(batches)
        return float(self.deepspeed.train_batch(iter([(b.inputs, ()) for b in batches])))

    def _evaluate(self, batches: Sequence[Any]) -> None:
        self.model.batches = iter(batches)
        pairs = iter([(b.inputs, ()) for b in batches])
        self.deepspeed.eval_batch(pairs, num_micro_batches=len(batches))


class _Plain(Engine):
    def _train_batch(self, batches: Sequence[Any]) -> float:
        self.deepspeed.train()
        self._total = total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.deepspeed(batch.inputs, batch)
            self.deepspeed.backward(loss)
            total += loss.detach()
            self.deepspeed.step()
        if self.grid.dp is not None:
            dist.all_reduce(total, group=self.grid.dp)
        return float(total) / (len(batches) * self.grid.layout.dp)

    def _own_loss(self) -> float:
        return float(self._total) / self.deepspeed.gradient_accumulation_steps()

    def _evaluate(self, batches: Sequence[Any]) -> None:
        self.deepspeed.eval()
        with torch.no_grad():
            for batch in batches:
                self.deepspeed(batch.inputs, batch)


def build_engine(
    layers: Sequence[StageLayer],
    grid: ProcessGrid,
    make_optimizer: Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer],
    settings: EngineSettings,
) -> Engine:
    """Builds this rank's part of the model and the engine that trains it; a collective.

    `make_optimizer` gets the parameters with their names in a checkpoint.
    """
    _quieten()
    import deepspeed
    from deepspeed.runtime.pipe.topology import (
        PipelineParallelGrid,
        PipeModelDataParallelTopology,
    )

    layout = grid.layout
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed reads it even for a single process
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(
            dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False
        )
    topology = PipeModelDataParallelTopology(num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.dp)
    if layout.zero == 1:
        from parallel.engine.stage_module import PipelineStages

        bounds = balance(layers, layout.pp)
        model, mpu = PipelineStages(layers, bounds, topology, settings.recompute), None
    else:
        model = WholeModel(layers, settings.recompute)
        mpu = _ModelParallelUnit(PipelineParallelGrid(topology=topology))
    model = model.to(settings.dtype)
    named = [(canonical_name(layers, name), p) for name, p in model.named_parameters()]
    optimizer = make_optimizer(named)
    with redirect_stdout(io.StringIO()):  # its bf16 optimizer prints the memory in use
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_deepspeed_config(settings, layout.zero, sum(p.numel() for _, p in named)),
            mpu=mpu,
            dist_init_required=False,
        )
    if layout.zero > 1:
        return _Plain(engine, model, optimizer, layers, grid)
    from parallel.engine.stage_module import keep_tied_copies_equal

    keep_tied_copies_equal(engine, grid.dp)
    return _Pipelined(engine, model, optimizer, layers, grid)


def _deepspeed_config(settings: EngineSettings, zero: int, parameters: int) -> dict[str, Any]:
    # DeepSpeed's buckets are 5e8 elements whatever the model: up to 2 GB that a small one wastes.
    bucket = min(500_000_000, max(parameters + parameters % 2, 2))  # it refuses odd ones
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.grad_accum_steps,
        "gradient_clipping": settings.clip,
        "steps_per_print": NEVER,
        "zero_optimization": {
            "stage": zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
    }
    if settings.dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


class _ModelParallelUnit:
    """DeepSpeed's grid with the one method that its plain engine looks for and it lacks."""

    def __init__(self, grid):
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def get_tensor_model_parallel_group(self):
        return self._grid.get_slice_parallel_group()


def _quieten() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives (a minute, and it needs a
    compiler) and from logging what is no news."""
    # Left to itself, it warns on machines without a GPU that it found none.
    accelerator = "cuda" if dist.get_backend() == "nccl" else "cpu"
    os.environ.setdefault("DS_ACCELERATOR", accelerator)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|deepspeed\.")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed.ops
    from deepspeed.utils import logger

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logger.setLevel(logging.ERROR)
