"""Weights of a folder put into modules: each rank reads its slices and nothing more.

At no time is more in memory than what the modules keep and one tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlm.errors import DataError
from mlm.model.encoder import Fill
from mlm.weights.memory import release_free_memory
from mlm.weights.source import Weights
from parallel.groups import group_size
from parallel.sharding import Shard, shard_of

BASE = "roberta."  # what names begin with in a model with a head, and not in one without
LARGE = 1 << 20  # bytes of a tensor whose memory is worth handing back

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """How the parameters of a model and the weights of a folder belong together.

    stored: name of a parameter -> name in the folder, where their shapes are equal
    mismatched: the same where they are not
    missing: parameters that the folder lacks
    unused: weights of the folder that no parameter takes
    """

    stored: dict[str, str]
    mismatched: dict[str, str]
    missing: list[str]
    unused: list[str]


def full_shapes(module: nn.Module, name: str = "") -> dict[str, Shape]:
    """Whole shapes of the parameters by name; a tied one is there once, under its first name."""
    named = module.named_parameters(prefix=name)
    return {each: _full_shape(parameter) for each, parameter in named}


def match(expected: Mapping[str, Shape], weights: Weights, *, bare: bool = False) -> Match:
    """Compares names and shapes, the prefix of the model without a head put on or taken off.

    expected: whole shapes of all parameters; bare: they are of a model without a head. Raises
    DataError where the folder has none of them.
    """
    prefixed = any(name.startswith(BASE) for name in weights.shapes)
    names = {
        name: BASE * (bare and prefixed) + (name if prefixed else name.removeprefix(BASE))
        for name in expected
    }
    there = {name: stored for name, stored in names.items() if stored in weights.shapes}
    if not there:
        raise DataError(
            f"{weights.origin} has no weights of this model, such as {next(iter(names.values()))}; "
            f"what it has begins with {next(iter(weights.shapes), 'nothing')}; give a folder of "
            f"the type xlm-roberta-xl"
        )
    fits = {name for name, stored in there.items() if weights.shapes[stored] == expected[name]}
    taken = set(there.values())
    return Match(
        {name: stored for name, stored in there.items() if name in fits},
        {name: stored for name, stored in there.items() if name not in fits},
        [name for name in names if name not in there],
        [name for name in weights.shapes if name not in taken],
    )


def check_shapes(matched: Match, expected: Mapping[str, Shape], weights: Weights) -> None:
    """Raises DataError for the first weight that has another shape."""
    for name, stored in matched.mismatched.items():
        raise DataError(
            f"{weights.where(stored)} has {stored} with the shape {weights.shapes[stored]}, and "
            f"the model's is {expected[name]}; give a config that fits, or "
            f"ignore_mismatched_sizes=True to begin such weights anew"
        )


def check_encoder(matched: Match, weights: Weights, optional: Iterable[str] = ()) -> None:
    """Raises DataError for the first weight of the encoder that is missing.

    A head may be new, and what `optional` has a part of the name of; a layer or an embedding that
    is not there is a folder that is not whole.
    """
    for name in matched.missing:
        if name.startswith((BASE, "embeddings.", "encoder.")) and not any(
            part in name for part in optional
        ):
            raise DataError(
                f"{weights.origin} has no {name}, which its config asks for; copy the folder again "
                f"from where it came, or give a config that fits"
            )


def load_parameters(
    module: nn.Module,
    weights: Weights,
    stored: Mapping[str, str],
    *,
    name: str = "",
    initial: Fill | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Reads the slices of this rank into the parameters that `stored` names (see `Match`).

    name: what the names of the parameters begin with in `stored`
    initial: fills the others, if there are any; before anything is read, so that what is to be
        read takes no memory yet: it is on the meta device then
    dtype: of all parameters, in place of their own; device: of those on the meta device

    A parameter that is replaced, as one on the meta device is, hands its marks on, and all that
    shared it share the new one; another keeps its identity. Raises DataError.
    """
    places = _places(module, name)
    if initial is not None and places.keys() - stored.keys():
        for each, where in places.items():
            old = _parameter(where)
            if each in stored:
                _replace(where, torch.empty_like(old, device="meta"))
            elif old.is_meta:
                _replace(where, torch.empty_like(old, dtype=dtype, device=device))
        initial(module, name)
    for each, where in places.items():
        if each not in stored:
            continue
        parameter = _parameter(where)
        value = _read(weights, stored[each], shard_of(parameter))
        if value.dtype != (dtype or parameter.dtype):
            size, value = value.nbytes, value.to(dtype or parameter.dtype)
            if size >= LARGE:
                release_free_memory()
        if parameter.is_meta:
            _replace(where, value.to(device))
        else:
            parameter.data = value.to(parameter.device)


def filler(weights: Weights, expected: Mapping[str, Shape], initial: Fill) -> Fill:
    """Fills modules of a list of stage layers as they are built (their `fill`).

    expected: whole shapes of the model that the list is of, of all stages: what is wrong raises
        here, DataError, and on every rank
    initial: fills what the folder lacks, such as a head
    """
    matched = match(expected, weights)
    check_shapes(matched, expected, weights)
    check_encoder(matched, weights)

    def fill(module: nn.Module, name: str) -> nn.Module:
        load_parameters(module, weights, matched.stored, name=name, initial=initial)
        return module

    return fill


def _read(weights: Weights, name: str, shard: Shard | None) -> Tensor:
    """This rank's slice; raises DataError where a second copy of a tied weight differs from it."""
    value = weights.read(name, shard)
    copy = weights.read_copy(name, shard)
    if copy is not None and not _same_bits(value, copy):
        raise DataError(
            f"{weights.where(name)} has other numbers in {weights.copies[name]} than in {name}, "
            f"and the two are one weight in this model; give a model that ties them"
        )
    return value


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """NaN is equal to itself, too."""
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _places(module: nn.Module, name: str) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every parameter by its first name, and all modules that hold it under some local name."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for local, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append((owner, local))
    return {each: owners[held] for each, held in module.named_parameters(prefix=name)}


def _parameter(where: list[tuple[nn.Module, str]]) -> nn.Parameter:
    owner, local = where[0]
    return getattr(owner, local)


def _replace(where: list[tuple[nn.Module, str]], value: Tensor) -> None:
    old = _parameter(where)
    made = nn.Parameter(value, old.requires_grad)
    made.__dict__.update(old.__dict__)  # how it is split, and what DeepSpeed asks for
    for owner, local in where:
        setattr(owner, local, made)


def _full_shape(parameter: nn.Parameter) -> Shape:
    shape, shard = list(parameter.shape), shard_of(parameter)
    if shard is not None:
        shape[shard.dim] *= group_size(shard.group)
    return tuple(shape)
