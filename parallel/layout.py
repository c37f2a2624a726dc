"""The layout of a job: degrees of tensor, pipeline and data parallelism, and the rank order."""

import math
from dataclasses import dataclass

PADDING = 128  # vocabularies are padded to a multiple of it


class LayoutError(ValueError):
    """Degrees that cannot work together; the message names the nearest ones that can."""


@dataclass(frozen=True)
class Layout:
    """`tp * pp * dp` processes; `zero` is the ZeRO stage over the data-parallel ones.

    Ranks count tensor fastest, then data, then pipeline, so that a tensor-parallel group lies
    inside one machine.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    zero: int = 1

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp"):
            if getattr(self, name) < 1:
                raise LayoutError(f"parallel.{name}={getattr(self, name)} is below 1; choose 1")
        if self.zero not in (1, 2, 3):
            raise LayoutError(f"parallel.zero={self.zero} is not a ZeRO stage; choose 1, 2 or 3")
        if self.zero > 1 and self.pp > 1:
            raise LayoutError(
                f"parallel.zero={self.zero} shards gradients that parallel.pp={self.pp} pipeline "
                f"stages still add to; choose parallel.zero=1, or parallel.pp=1"
            )

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """`(tp_rank, pp_rank, dp_rank)` of a global rank."""
        tp_rank = rank % self.tp
        dp_rank = rank // self.tp % self.dp
        return tp_rank, rank // (self.tp * self.dp), dp_rank

    def rank(self, tp_rank: int, pp_rank: int, dp_rank: int) -> int:
        """The global rank at these coordinates."""
        return (pp_rank * self.dp + dp_rank) * self.tp + tp_rank

    def check_processes(self, started: int) -> None:
        """Raises unless `started` processes are what this layout needs."""
        if started != self.world_size:
            raise LayoutError(
                f"{started} processes were started, but parallel.tp={self.tp} x parallel.pp="
                f"{self.pp} x parallel.dp={self.dp} needs {self.world_size}; start "
                f"{self.world_size}, or change the degrees"
            )

    def check_model(self, heads: int, intermediate_size: int, layers: int) -> None:
        """Raises unless the degrees can split a model of this shape."""
        both = [n for n in _divisors(heads) if intermediate_size % n == 0]
        for name, size in (
            ("num_attention_heads", heads),
            ("intermediate_size", intermediate_size),
        ):
            if size % self.tp:
                raise LayoutError(
                    f"model.{name}={size} is not a multiple of parallel.tp={self.tp}; choose tp "
                    f"from {_listed(both)}"
                )
        if self.pp > layers:
            raise LayoutError(
                f"parallel.pp={self.pp} is above model.num_hidden_layers={layers}, and a stage "
                f"needs a layer; choose pp from 1 to {layers}"
            )

    def check_vocabulary(self, vocab_size: int, heads: int, intermediate_size: int) -> None:
        """Raises unless the padded vocabulary splits evenly over tp."""
        if vocab_size % self.tp:
            fitting = _divisors(math.gcd(vocab_size, heads, intermediate_size))
            unit = math.lcm(self.tp, PADDING)
            raise LayoutError(
                f"model.vocab_size={vocab_size} is not a multiple of parallel.tp={self.tp}; choose "
                f"tp from {_listed(fitting)}, or model.vocab_size={-(-vocab_size // unit) * unit}"
            )

    def grad_accum_steps(self, global_batch_size: int, micro_batch_size: int) -> int:
        """Micro-batches of a data rank in a step; raises unless the sizes divide evenly."""
        unit = micro_batch_size * self.dp
        if global_batch_size % unit:
            lower = max(unit, global_batch_size // unit * unit)
            upper = (global_batch_size // unit + 1) * unit
            near = f"{lower}" if lower == upper else f"{lower} or {upper}"
            raise LayoutError(
                f"train.global_batch_size={global_batch_size} is not a multiple of "
                f"train.micro_batch_size={micro_batch_size} x parallel.dp={self.dp}; choose {near}"
            )
        return global_batch_size // unit


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
