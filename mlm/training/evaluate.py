"""Loss on held-out text, overall and by language."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from mlm.data.batches.batches import HeldOutBatches
from mlm.tracking.report import Evaluation
from parallel.engine.deepspeed import Engine

BATCHES_AT_A_TIME = 16  # micro-batches between two fillings of the pipeline


@dataclass(frozen=True)
class Losses:
    """Sums over masked tokens: a mean per token, overall and by language, in nats."""

    sums: list[float]
    counts: list[int]
    languages: list[str]

    @property
    def mean(self) -> float:
        """Over all masked tokens; NaN where there are none."""
        return sum(self.sums) / sum(self.counts) if sum(self.counts) else math.nan

    @property
    def by_language(self) -> dict[str, float]:
        """Of the languages that have masked tokens."""
        rows = zip(self.languages, self.sums, self.counts, strict=True)
        return {name: total / count for name, total, count in rows if count}

    def described(self, entropy: tuple[float, dict[str, float]]) -> Evaluation:
        """For the report, with the unigram entropy of the same tokens, overall and by language."""
        return Evaluation(
            {
                "eval_loss": self.mean,
                "eval_unigram_entropy": entropy[0],
                "eval_loss_by_language": self.by_language,
            },
            {
                "eval_unigram_entropy_by_language": entropy[1],
                "eval_tokens_by_language": dict(zip(self.languages, self.counts, strict=True)),
            },
            f"held-out loss {self.mean:.4f} nats a token; the unigram entropy of these tokens is "
            f"{entropy[0]:.4f}",
        )


def evaluate(
    engine: Engine, heldout: HeldOutBatches, going_on: Callable[[], None] = lambda: None
) -> Losses:
    """Scores all held-out blocks, spread over the data ranks; a collective, equal on all ranks.

    going_on: is called again and again, as long as it goes on.
    """
    layout = engine.grid.layout
    languages = heldout.reader.index.languages
    found = torch.zeros(len(languages), 2, dtype=torch.float64, device=engine.device)
    # Every data rank runs as many micro-batches; those past the end have no targets.
    rounds = math.ceil(len(heldout) / layout.dp)
    for first in range(0, rounds, BATCHES_AT_A_TIME):
        numbers = range(first, min(first + BATCHES_AT_A_TIME, rounds))
        batches = [
            replace(heldout.micro_batch(n * layout.dp + engine.grid.dp_rank), losses=found)
            for n in numbers
        ]
        going_on()
        engine.evaluate(batches)
    return gather(engine, found, languages)


def gather(engine: Engine, found: torch.Tensor, languages: list[str]) -> Losses:
    """Adds up what the ranks that hold the head have found; a collective.

    found: (languages, 2) float64, sums and counts, the same on every tensor-parallel rank of a
    last stage and zero elsewhere.
    """
    dist.all_reduce(found)
    sums, counts = (found / engine.grid.layout.tp).t().tolist()
    return Losses(sums, [round(count) for count in counts], languages)
