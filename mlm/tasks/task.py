"""What the training loop asks of a task. The loop knows no masks and no labels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from mlm.model.encoder import SetWeights
from mlm.tracking.scores import Scores
from parallel.engine.interface import Engine, Outputs
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer

OnProgress = Callable[[], None]  # called often by what takes long, for the watchdog


@runtime_checkable
class Batch(Protocol):
    """A micro-batch, a frozen dataclass; layers get it as their second argument.

    inputs: what the first layer is called with; the same shape for a whole run where pp > 1
    loss_scale: a factor of the sum of its losses; dropout_key: every dropout mask is derived from
        it. Both are set by the loop before each step
    digest: a hash of all that is trained on, as an int64; hashes add up modulo 2^64
    """

    @property
    def inputs(self) -> torch.Tensor: ...
    @property
    def loss_scale(self) -> float: ...
    @property
    def dropout_key(self) -> int: ...
    @property
    def digest(self) -> int: ...
    def to(self, device: torch.device) -> "Batch": ...


class Tally:
    """Figures of the steps since the last logged one, summed over the outputs of their last layers.
    This one has none."""

    def add(self, batches: Sequence[Any], outputs: Sequence[Outputs]) -> None:
        """Adds a step: this data rank's micro-batches and, on the last stage, their outputs."""

    def take(self, engine: Engine) -> dict[str, Any]:
        """The figures, for `metrics.jsonl`, and starts again; a collective."""
        return {}

    def clear(self) -> None:
        """Starts again."""


class Task(ABC):
    """What is trained, on which batches, and how it is scored; made on every rank alike.

    data_hash: of all that batches are made of; a run resumes only on the same
    micro_batches: of a step, over all data ranks; tokens_per_step: padding included
    flops_per_token: floating-point operations of the forward and the backward pass
    """

    data_hash: str
    micro_batches: int
    tokens_per_step: int
    flops_per_token: float

    @abstractmethod
    def layers(self, group: Group, set_weights: SetWeights | None) -> list[StageLayer]:
        """The model, split over `group`; set_weights: gives modules weights in place of initial
        ones."""

    @abstractmethod
    def batches(self, step: int, numbers: Sequence[int]) -> list[Any]:
        """The micro-batches of a step, counted from 0, by their numbers in it; the same for the
        same numbers in every layout. Raises `BadShard` for data that cannot be used."""

    @abstractmethod
    def normaliser(self, batches: Sequence[Any]) -> int:
        """The number that the summed loss of `batches` is divided by, such as its masked tokens."""

    def tally(self, device: torch.device) -> Tally:
        """An empty tally."""
        return Tally()

    @abstractmethod
    def evaluate(self, engine: Engine, on_progress: OnProgress) -> Scores:
        """Scores the model on held-out data; a collective, with one result on all ranks."""

    def progress(self, steps: int, skipped: set[int]) -> dict[str, Any]:
        """What the run has seen after `steps`, of which `skipped` were not trained on, for
        `metrics.jsonl`."""
        return {}

    def skip_shard(self, shard: str, step: int) -> None:
        """Trains on no sample of a shard from `step` on."""
        raise NotImplementedError(f"{type(self).__name__} has no shards")

    @abstractmethod
    def summary(self) -> str:
        """What it is trained on, in a few words."""


def evaluated(
    engine: Engine,
    count: int,
    batch: Callable[[int], Any],
    on_progress: OnProgress,
    at_once: int = 16,
) -> Iterator[tuple[Any, Outputs]]:
    """Runs `count` micro-batches forward, spread over the data ranks; a collective.

    batch: makes micro-batch `k`; for k >= `count`, padding without targets, since every data rank
        runs the same number of them
    at_once: micro-batches between two fillings of the pipeline
    Yields this data rank's micro-batches with their outputs, on every stage.
    """
    dp, dp_rank = engine.grid.layout.dp, engine.grid.dp_rank
    rounds = -(-count // dp)
    for first in range(0, rounds, at_once):
        numbers = range(first, min(first + at_once, rounds))
        batches = [batch(number * dp + dp_rank) for number in numbers]
        on_progress()
        yield from zip(batches, engine.evaluate(batches), strict=True)
