"""DeepSpeed's two engines behind our interface.

`PipelineEngine` with ZeRO-1 runs whenever `zero` is 1, also without pipeline stages; the plain
engine runs ZeRO-2 and 3. ZeRO-0 is never used: DeepSpeed clips wrongly there with a pipeline,
and in bf16 it takes another optimizer.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine.deepspeed_adapter import expected
from parallel.engine.deepspeed_adapter.zero import Zero1And2, Zero1Bf16, Zero3, ZeroOptimizer
from parallel.engine.interface import Engine, Judge, Outputs, Piece, StepResult
from parallel.groups import ProcessGrid
from parallel.pipeline.stages import StageLayer, canonical_name

NORM_TOLERANCE = 1e-3  # relative, of a norm whose squares are summed in another order


class DeepSpeedEngine(Engine):
    """What the two engines have in common: judging a step, and the canonical state.

    deepspeed: DeepSpeed's engine; model: the module that it trains
    order: the layers in the order in which the model numbers them
    """

    def __init__(
        self,
        deepspeed: Any,
        model: nn.Module,
        inner: torch.optim.Optimizer,
        layers: Sequence[StageLayer],
        order: Sequence[StageLayer],
        grid: ProcessGrid,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(layers, grid, deepspeed.device, dtype)
        self.deepspeed, self.model = deepspeed, model
        self.inner: Any = inner  # its `step` is replaced
        self._order = order
        self.zero = _zero_optimizer(deepspeed.optimizer, inner, grid.layout.zero, dtype)
        if dtype == torch.float32:
            self.zero.share_masters()
        self._refused_by: int | None = None
        self._judged = False  # the step in progress
        self._loss = self._local_norm = 0.0  # its mean loss; the norm of this rank's gradients
        self._deepspeed_step = deepspeed.optimizer.step
        deepspeed.optimizer.step = self._gradients_complete
        self._inner_step, self.inner.step = inner.step, self._step_if_judged_good

    def train_batch(self, batches: Sequence[Any], lr: float) -> StepResult:
        for group in self.inner.param_groups:
            group["lr"] = lr
        self._judged, self._refused_by = False, None
        loss, outputs = self._train([batch.to(self.device) for batch in batches])
        norm = float(self.deepspeed.get_global_grad_norm())
        # DeepSpeed itself skips a step whose norm is not finite, on all ranks.
        applied = self._refused_by is None and not self.zero.overflow
        return StepResult(loss, norm, applied, self._refused_by, outputs)

    def evaluate(self, batches: Sequence[Any]) -> list[Outputs]:
        return self._evaluate([batch.to(self.device) for batch in batches])

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(canonical_name(self._order, n), p) for n, p in self.model.named_parameters()]

    def tied_parameters(self, key: str) -> list[nn.Parameter]:
        modules: Any = self.model.tied_modules
        return list(modules[key].parameters()) if key in modules else []

    def held_part(self, parameter: Any) -> Tensor:
        if self.grid.layout.zero < 3:
            return parameter
        partition = parameter.ds_tensor
        first = self.grid.dp_rank * partition.numel()
        # The last parts are padded with what was in memory.
        return partition[: max(0, parameter.ds_numel - first)]

    def pieces(self) -> list[Piece]:
        self.zero.make_moments()
        pieces = (self.zero.piece(name, parameter) for name, parameter in self.named_parameters())
        return [piece for piece in pieces if piece is not None and len(piece.tensors["weight"])]

    def pieces_changed(self, step: int) -> None:
        self.zero.weights_follow_masters()
        self.zero.set_step(step)

    def write_masters(self, read: Callable[[str, nn.Parameter], Tensor | None]) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.named_parameters():
            value = read(name, parameter)
            if value is not None:
                safe_set_full_fp32_param(parameter, value)

    def skip_step(self) -> None:
        self.zero.skip_step()

    @abstractmethod
    def _train(self, batches: Sequence[Any]) -> tuple[float, list[Outputs]]:
        """The mean loss over all data ranks, and the outputs where the last layer is."""

    @abstractmethod
    def _evaluate(self, batches: Sequence[Any]) -> list[Outputs]:
        """The outputs of each micro-batch, on every stage."""

    @abstractmethod
    def _local_loss(self) -> float:
        """The mean loss of this data rank's micro-batches, on the last stage; 0 on others."""

    def _gradients_complete(self) -> None:
        """DeepSpeed calls this as its optimizer's step, with the gradients of all micro-batches.

        Its norm counts replicated parameters and the copies of a tied weight once, so that an error
        in one replica does not show in it; in bf16 each data rank uses its own copy of all.
        """
        if self.judge is not None:
            self._loss = self._local_loss()
            if self.grid.layout.world_size > 1:
                self._compare_gradients()
        self._deepspeed_step()

    def _compare_gradients(self) -> None:
        """Makes all ranks find the gradients not finite if one does; a collective."""
        layout, gradients = self.grid.layout, self.zero.gradients()
        self._local_norm = float(nn.utils.get_total_norm(gradients))
        wrong = not math.isfinite(self._local_norm)
        sums = torch.tensor([self._loss, wrong], dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        loss, wrongs = sums.tolist()
        self._loss = loss / (layout.tp * layout.dp)
        if wrongs and gradients:  # all ranks skip this step, and none waits for another
            gradients[0].view(-1)[:1] = math.inf

    def _step_if_judged_good(self) -> None:
        """DeepSpeed calls this to change this rank's masters, once for each group of them."""
        if self.judge is not None and not self._judged:
            self._judged = True
            self._refused_by = self._highest_refusing_rank(self.judge)
        if self._refused_by is None:
            self._inner_step()

    def _highest_refusing_rank(self, judge: Judge) -> int | None:
        """None where all ranks accept the step; a collective."""
        norm = self.zero.grad_norm
        # A rank's gradients are a part of the whole, including those that the norm leaves out.
        good = judge(self._loss, norm) and self._local_norm <= norm * (1 + NORM_TOLERANCE)
        refusing = torch.tensor(-1 if good else self.grid.rank, device=self.device)
        if self.grid.layout.world_size > 1:
            dist.all_reduce(refusing, dist.ReduceOp.MAX)
        return int(refusing) if refusing >= 0 else None


class PipelinedEngine(DeepSpeedEngine):
    """Over DeepSpeed's pipeline engine, whose schedule of one run per stage is 1F1B."""

    model: Any  # a StageModule, whose module imports DeepSpeed

    def __init__(self, deepspeed: Any, model: Any, *args: Any) -> None:
        from deepspeed.runtime.pipe.schedule import ForwardPass

        expected.expect(deepspeed, expected.PIPELINE_ENGINE)
        super().__init__(deepspeed, model, *args)
        forward = deepspeed._INSTRUCTION_MAP[ForwardPass]

        def numbered_forward(engine: Any, buffer_id: int) -> None:
            """Both of DeepSpeed's schedules run a stage's forward passes in the order of the
            micro-batches."""
            model.number, self._next = self._next, self._next + 1
            forward(engine, buffer_id)

        deepspeed._INSTRUCTION_MAP = {**deepspeed._INSTRUCTION_MAP, ForwardPass: numbered_forward}
        self._next = 0  # number of the micro-batch of the next forward pass
        # In bf16 DeepSpeed sums gradients in buckets of its own, of 5e8 elements.
        deepspeed._bf16_reduce_grads = partial(
            deepspeed.buffered_allreduce_fallback,
            elements_per_buffer=deepspeed.zero_reduce_bucket_size(),
        )
        if isinstance(self.zero, Zero1And2) and self.grid.pp is not None:
            self.zero.take_part_in_norms(self.grid.pp)

    @property
    def local_layers(self) -> Sequence[StageLayer]:
        return self.model.local_layers

    def _local_loss(self) -> float:
        if not self.grid.is_last_stage:
            return 0.0
        return float(self.deepspeed.total_loss) / self.deepspeed.gradient_accumulation_steps()

    def _train(self, batches: Sequence[Any]) -> tuple[float, list[Outputs]]:
        loss = float(self.deepspeed.train_batch(self._load(batches)))
        return loss, self._outputs(batches)

    def _evaluate(self, batches: Sequence[Any]) -> list[Outputs]:
        self.deepspeed.eval_batch(self._load(batches), num_micro_batches=len(batches))
        return _from_last_stage(self._outputs(batches), len(batches), self.grid, self.device)

    def _load(self, batches: Sequence[Any]) -> Any:
        """Gives every stage the micro-batches; DeepSpeed's iterator of the first stage's inputs."""
        self._next, self.model.outputs, self.model.batches = 0, {}, batches
        return iter([(batch.inputs, ()) for batch in batches])

    def _outputs(self, batches: Sequence[Any]) -> list[Outputs]:
        if not self.model.last:
            return []
        return [self.model.outputs[number] for number in range(len(batches))]


class PlainEngine(DeepSpeedEngine):
    """Over DeepSpeed's plain engine, for ZeRO-2 and 3."""

    @property
    def local_layers(self) -> Sequence[StageLayer]:
        return self.layers

    def _train(self, batches: Sequence[Any]) -> tuple[float, list[Outputs]]:
        self.deepspeed.train()
        self._total = total = torch.zeros((), device=self.device)
        every = []
        for batch in batches:
            loss, outputs = self.deepspeed(batch.inputs, batch)
            self.deepspeed.backward(loss)
            total += loss.detach()
            every.append(outputs)
            self.deepspeed.step()
        if self.grid.dp is not None:
            dist.all_reduce(total, group=self.grid.dp)
        return float(total) / (len(batches) * self.grid.layout.dp), every

    def _local_loss(self) -> float:
        return float(self._total) / self.deepspeed.gradient_accumulation_steps()

    def _evaluate(self, batches: Sequence[Any]) -> list[Outputs]:
        self.deepspeed.eval()
        with torch.no_grad():
            return [self.deepspeed(batch.inputs, batch)[1] for batch in batches]


def _zero_optimizer(
    wrapped: Any, inner: torch.optim.Optimizer, stage: int, dtype: torch.dtype
) -> ZeroOptimizer:
    if stage == 3:
        return Zero3(wrapped, inner)
    kind = Zero1Bf16 if stage == 1 and dtype == torch.bfloat16 else Zero1And2
    return kind(wrapped, inner)


def _from_last_stage(
    outputs: list[Outputs], count: int, grid: ProcessGrid, device: torch.device
) -> list[Outputs]:
    """Sends the outputs of `count` micro-batches from the last stage to the others; a collective
    over the stages."""
    if grid.pp is None:
        return outputs
    source = dist.get_global_rank(grid.pp, grid.layout.pp - 1)
    described: list[Any] = [[{n: (t.shape, t.dtype) for n, t in o.items()} for o in outputs]]
    dist.broadcast_object_list(described, source, group=grid.pp, device=device)
    if not grid.is_last_stage:
        outputs = [
            {n: torch.empty(shape, dtype=dtype, device=device) for n, (shape, dtype) in row.items()}
            for row in described[0]
        ]
    assert len(outputs) == count, (len(outputs), count)
    for row in outputs:
        for tensor in row.values():
            dist.broadcast(tensor.contiguous(), source, group=grid.pp)
    return outputs
