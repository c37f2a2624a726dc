"""The result of an evaluation, as it is reported."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation.

    loss: the figure that a sweep minimises and `outcome.json` holds
    metrics: a row of `metrics.jsonl`; details: what `evaluation.json` holds besides
    sentence: for people
    """

    loss: float
    metrics: dict[str, Any]
    sentence: str
    details: dict[str, Any] = field(default_factory=dict)
