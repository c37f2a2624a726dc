"""Relative positions in attention: Shaw et al. 2018 (keys), Huang et al. 2020 (keys, queries)."""

import torch
from torch import Tensor, nn

from parallel.groups import Group
from parallel.tensor.collectives import copy_to_group


class RelativePositions(nn.Module):
    """A vector for every distance `query's place - key's place`, learned.

    Row `distance + max_positions - 1` of `weight` is that of a distance. All heads share it.
    kind: `relative_key` adds q.E to the scores, `relative_key_query` adds q.E + k.E.
    """

    def __init__(self, max_positions: int, head_size: int, group: Group, kind: str):
        super().__init__()
        self.max_positions, self.group = max_positions, group
        self.with_keys = kind == "relative_key_query"
        self.weight = nn.Parameter(torch.empty(2 * max_positions - 1, head_size))

    def forward(self, query: Tensor, keys: Tensor, scale: float) -> Tensor:
        """What is added to the scores, (batch, heads, queries, keys).

        query: (batch, heads, queries, head_size), multiplied by `scale` already; its last row
            stands at the place of the last key
        keys: (batch, heads, keys, head_size)

        Each vector is multiplied with those of all distances that occur, and then the products are
        picked: (queries + keys) x head_size numbers of E, never queries x keys x head_size.
        """
        queries, length = query.shape[-2], keys.shape[-2]
        weight = copy_to_group(self.weight, self.group)  # every rank has but a part of the heads
        lowest = 1 - queries  # of the distance, at the first query and the last key
        first = lowest + self.max_positions - 1
        rows = weight[first : first + queries + length - 1].to(query.dtype).t()
        places = torch.arange(length - queries, length, device=query.device)
        distance = places.unsqueeze(1) - torch.arange(length, device=query.device)
        index = (distance - lowest).expand(*query.shape[:-1], length)
        scores = (query @ rows).gather(-1, index)
        if self.with_keys:
            of_keys = (keys * scale @ rows).gather(-1, index.transpose(-1, -2))
            scores = scores + of_keys.transpose(-1, -2)
        return scores
