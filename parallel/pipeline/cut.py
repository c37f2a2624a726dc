"""Which layers each pipeline stage holds."""

import itertools
from collections.abc import Sequence
from functools import cache

from parallel.pipeline.stages import StageLayer

Runs = tuple[range, ...]  # the contiguous runs of layers that a stage holds, by layer number


def cut(layers: Sequence[StageLayer], stages: int, runs: int = 1) -> list[Runs]:
    """Deals `layers` out to `stages`, each of which holds `runs` contiguous runs of them.

    A micro-batch passes stage 0, 1, ..., and with several runs then stage 0 again. Raises
    ValueError with more runs than can be cut.
    """
    bounds = balance(layers, stages * runs)
    ranges = [range(*pair) for pair in itertools.pairwise(bounds)]
    return [tuple(ranges[stage::stages]) for stage in range(stages)]


def balance(layers: Sequence[StageLayer], stages: int) -> list[int]:
    """Cuts `layers` into `stages` runs whose heaviest is as light as can be.

    The weight of a run is its share of the FLOPs plus its share of the parameters, so neither
    the time nor the memory of a stage stands out; embedding and head count like any layer.
    Returns the `stages + 1` bounds. Raises ValueError with more stages than can be cut.
    """
    flops = sum(layer.flops for layer in layers) or 1.0
    parameters = sum(layer.parameters for layer in layers) or 1
    cuts = [i for i, layer in enumerate(layers) if not layer.joined] + [len(layers)]
    weights = [
        sum(layer.flops / flops + layer.parameters / parameters for layer in layers[start:stop])
        for start, stop in itertools.pairwise(cuts)
    ]
    if stages > len(weights):
        raise ValueError(f"{stages} stages cannot be cut from {len(weights)} layers")

    @cache
    def best(first: int, left: int) -> tuple[float, tuple[int, ...]]:
        if left == 1:
            return sum(weights[first:]), (len(weights),)
        options = []
        for stop in range(first + 1, len(weights) - left + 2):
            rest, bounds = best(stop, left - 1)
            options.append((max(sum(weights[first:stop]), rest), (stop, *bounds)))
        return min(options)

    return [0] + [cuts[bound] for bound in best(0, stages)[1]]
