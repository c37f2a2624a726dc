"""What training asks of an engine, whatever runs the optimizer step behind it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parallel.groups import ProcessGrid
from parallel.pipeline.stages import StageLayer, name_of

KINDS = ("weight", "exp_avg", "exp_avg_sq")  # of the tensors in a `Piece`

Judge = Callable[[float, float], bool]  # loss and gradient norm of a step -> whether to apply it
Outputs = dict[str, Tensor]  # what the last layer gave for a micro-batch, beside its loss
MakeOptimizer = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine trains. Sizes count sequences and micro-batches of one data rank.

    clip: the largest gradient norm; 0: no clipping
    recompute: run the layers that allow it again in the backward pass (activation checkpointing)
    """

    micro_batch_size: int
    grad_accum_steps: int
    clip: float = 0.0
    dtype: torch.dtype = torch.float32
    recompute: bool = False


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step gave.

    loss: the mean of the layers' losses over all micro-batches of all data ranks, the same on
        every rank
    grad_norm: of the gradient over all ranks, before clipping
    applied: whether weights and moments changed
    refused_by: the highest rank whose judge refused the step; None where none did, also where the
        norm was not finite
    outputs: of each micro-batch of this data rank, on the ranks of the last stage; else empty
    """

    loss: float
    grad_norm: float
    applied: bool = True
    refused_by: int | None = None
    outputs: list[Outputs] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """The part of a parameter's training state that this rank holds: elements from `start` on of
    the flattened tensor-parallel slice.

    name: in a checkpoint; shape: of this rank's tensor-parallel slice
    tensors: fp32, 1-D and of one length, by the names in KINDS; writing to them changes the engine
    """

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, Tensor]


class Engine(ABC):
    """Trains a list of layers over a process grid.

    A micro-batch is any object with `inputs` (the first layer's tensor) and `to(device)`; layers
    get it as their second argument. The last layer returns `(loss, outputs)`: a scalar, and named
    tensors that the engine hands back.

    judge: called with the loss and the gradient norm of each step before weights and moments
        change; if it says no on one rank, they change on none. None: only a norm that is not
        finite is refused
    """

    def __init__(
        self,
        layers: Sequence[StageLayer],
        grid: ProcessGrid,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.layers, self.grid, self.device, self.dtype = layers, grid, device, dtype
        self.judge: Judge | None = None

    @property
    @abstractmethod
    def local_layers(self) -> Sequence[StageLayer]:
        """The layers of this rank, in the order of the model; not necessarily contiguous."""

    @abstractmethod
    def train_batch(self, batches: Sequence[Any], lr: float) -> StepResult:
        """One optimizer step over the micro-batches of this data rank; a collective.

        A layer that scales the sum of its losses by `grad_accum_steps * dp / N` gives the mean
        over N, exactly. A step that was not applied can be repeated as if it had not been tried.
        """

    @abstractmethod
    def evaluate(self, batches: Sequence[Any]) -> list[Outputs]:
        """Forward passes without gradients or dropout; a collective.

        Returns the outputs of each micro-batch, the same on every stage of the pipeline.
        """

    @abstractmethod
    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """This rank's parameters under their names in a checkpoint, in the same order on all data
        ranks."""

    @abstractmethod
    def tied_parameters(self, key: str) -> list[nn.Parameter]:
        """The parameters of this rank's copy of the layers tied by `key`; none without a copy."""

    @abstractmethod
    def held_part(self, parameter: nn.Parameter) -> Tensor:
        """What this rank keeps of a parameter: all of it or, where weights are sharded over data
        ranks, its part."""

    @abstractmethod
    def pieces(self) -> list[Piece]:
        """This rank's pieces of the canonical state: views of what the optimizer steps on, so that
        a checkpoint is written and read without a copy.

        Those of all data ranks together are every parameter, once. Moments are zero before the
        first step.
        """

    @abstractmethod
    def pieces_changed(self, step: int) -> None:
        """To be called after writing to the pieces: weights follow their masters, and the
        optimizer counts from `step`. A collective over the data ranks."""

    @abstractmethod
    def write_masters(self, read: Callable[[str, nn.Parameter], Tensor | None]) -> None:
        """Replaces the fp32 masters of a new engine, which it made of rounded parameters.

        read: gives this rank's tensor-parallel slice of a parameter, or None to keep the master.
        A collective over the data ranks.
        """

    @abstractmethod
    def skip_step(self) -> None:
        """Counts an optimizer step that is not taken, so that counts are those of the run."""

    def reset(self) -> None:
        """Puts back what a new engine has: initial weights and no moments. Layers are built again
        one after the other. A collective over the data ranks."""
        pieces = {piece.name: piece for piece in self.pieces()}
        layers = {name_of(self.layers, layer): layer for layer in reversed(self.local_layers)}
        for name, layer in layers.items():
            for local, value in layer.build().named_parameters():
                piece = pieces.get(f"{name}.{local}")
                if piece is not None:
                    weight = piece.tensors["weight"]
                    flat = value.detach().to(self.dtype).flatten()
                    weight.copy_(flat[piece.start : piece.start + len(weight)])
                    for kind in KINDS[1:]:
                        piece.tensors[kind].zero_()
        self.pieces_changed(0)
