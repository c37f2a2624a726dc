"""Entering and leaving the part of a model that is split over a tensor-parallel group."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from parallel.groups import Group
from parallel.tensor.collectives import copy_to_group, reduce_from_group


@dataclass(frozen=True)
class Region:
    """The pair of collectives that bound a region, passed to layers when they are built.

    Inside a region each rank has its heads, features or ids of all tokens; between regions
    activations have the layout that the pair decides.

    enter: activations from between regions -> those of all tokens, whole, on every rank
    leave: each rank's summand of such activations -> their sum, in the layout between regions
    """

    enter: Callable[[Tensor, Group], Tensor]
    leave: Callable[[Tensor, Group], Tensor]


# Between regions every rank has all activations. Forward: identity, all-reduce. Backward:
# all-reduce, identity.
TENSOR_REGION = Region(copy_to_group, reduce_from_group)
