"""How often each language is drawn: whole numbers of samples in each round of a run.

In a round, a language has a quota proportional to `weight * n^alpha` for its n training tokens
(XLM-R, section 3.1). Quotas change where a schedule changes alpha, and where a language reaches its
maximum of epochs. Between such changes they are constant, so the number of a language's samples
before any round is arithmetic, at the same cost for any round.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

ROUND = 1 << 16  # samples
STEPS = 32  # by which a line of a schedule is approximated, at most


@dataclass(frozen=True)
class Phase:
    """The rounds from `first` to the next phase.

    quotas: (languages,) int64, samples of each in a round; before: (languages,) int64, samples of
    each in all rounds before `first`
    """

    first: int
    quotas: np.ndarray
    before: np.ndarray


class Mix:
    """The quotas of every round of a run."""

    def __init__(
        self,
        train_tokens: Sequence[int],
        alphas: Sequence[tuple[int, float]],
        weights: Sequence[float] | None = None,
        max_samples: Sequence[int | None] | None = None,
    ) -> None:
        """The mix of languages with these training tokens.

        alphas: (sample, alpha) points from sample 0 on, between which alpha is linear, and after
            which it is constant
        weights: factors of the languages, 0 for one that is skipped
        max_samples: the most samples of each language in the run, None where there is no limit
        """
        tokens = np.asarray(train_tokens, np.float64)
        factors = np.ones(len(tokens)) if weights is None else np.asarray(weights, np.float64)
        limits = list(max_samples or [None] * len(tokens))
        self.phases: list[Phase] = []
        self._build(tokens, factors, limits, _by_round(alphas))
        self._firsts = [phase.first for phase in self.phases]
        last = self.phases[-1]
        # The run ends where all languages have reached their limits.
        self.samples = None if last.quotas.any() else int(last.before.sum())

    def phase(self, round: int) -> Phase:
        """The phase that a round is in."""
        return self.phases[bisect_right(self._firsts, round) - 1]

    def quotas(self, round: int) -> np.ndarray:
        """Samples of each language in a round, (languages,) int64."""
        return self.phase(round).quotas

    def before(self, round: int) -> np.ndarray:
        """Samples of each language in all rounds before one, (languages,) int64."""
        phase = self.phase(round)
        return phase.before + (round - phase.first) * phase.quotas

    def _build(
        self,
        tokens: np.ndarray,
        factors: np.ndarray,
        limits: list[int | None],
        alphas: list[tuple[int, float]],
    ) -> None:
        round, done = 0, np.zeros(len(tokens), np.int64)
        while True:
            place = bisect_right([first for first, _ in alphas], round) - 1
            left = np.array(
                [ROUND if most is None else most - n for most, n in zip(limits, done, strict=True)]
            )
            quotas = _within(factors * tokens ** alphas[place][1], left)
            self.phases.append(Phase(round, quotas, done))
            rounds = [first - round for first, _ in alphas[place + 1 : place + 2]]
            rounds += [
                max(1, int(rest // quota))
                for most, rest, quota in zip(limits, left, quotas, strict=True)
                if most is not None and quota
            ]
            if not rounds or not quotas.any():
                return
            round, done = round + min(rounds), done + min(rounds) * quotas


def shares(weights: np.ndarray, total: int = ROUND) -> np.ndarray:
    """`total` divided in proportion to positive weights, int64, by the largest remainder.

    A share below one becomes one, so that none is zero, provided that `total` suffices.
    """
    small = np.zeros(len(weights), bool)
    enough = len(weights) <= total
    while True:
        exact = weights / weights[~small].sum() * (total - small.sum())
        # Rounded, so that the last bits of a machine's power function have no effect.
        exact = np.where(small, 1.0, np.round(exact, 6))
        if not (exact < 1).any() or not enough:
            break
        small |= exact < 1
    whole = np.floor(exact).astype(np.int64)
    left = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole


def limits(
    blocks: Sequence[int], names: Sequence[str], epochs: float | None, of: Mapping[str, float]
) -> list[int | None]:
    """The most samples of each language, None where there is no limit.

    blocks: of each language; epochs: the most of any language; of: the most of some, by name
    """
    found = (of.get(name, epochs) for name in names)
    return [
        None if most is None else int(Fraction(str(most)) * int(count))
        for most, count in zip(found, blocks, strict=True)
    ]


def _within(weights: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The quotas of a round, none above the samples `left`; the others get the difference."""
    quotas = np.zeros(len(weights), np.int64)
    open_ = (weights > 0) & (left > 0)
    while open_.any():
        total = ROUND - int(quotas.sum())
        found = np.zeros(len(weights), np.int64)
        found[open_] = shares(weights[open_], total) if total else 0
        above = open_ & (found > left)
        if not above.any():
            return quotas + found
        quotas[above] = left[above]
        open_ &= ~above
    return quotas


def _by_round(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """(round, alpha) from round 0 on: the rounds where alpha changes, and its new value."""
    found = {0: points[0][1]}
    for (begin, before), (end, after) in pairwise(points):
        first, last = -(-begin // ROUND), -(-end // ROUND)
        steps = min(STEPS, last - first)
        for step in range(steps):
            share = step / steps
            found[first + step * (last - first) // steps] = before + (after - before) * share
        found[last] = after
    rows = sorted(found.items())
    return rows[:1] + [row for last, row in pairwise(rows) if row[1] != last[1]]
