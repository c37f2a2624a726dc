"""Weights of a folder read into modules: each rank reads its slices and nothing more.

Memory never holds more than what the modules keep and one tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlm.errors import DataError
from mlm.model.encoder import SetWeights
from mlm.weights.memory import release_free_memory
from mlm.weights.source import Weights
from parallel.groups import group_size
from parallel.sharding import shard_of

BASE = "roberta."  # what names begin with in a model with a head, and not in one without
LARGE = 1 << 20  # bytes of a tensor whose memory is worth returning

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """Which weights of a folder the parameters of a model have.

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
    """Full shapes of the parameters by name; a tied one is there once, under its first name."""
    named = module.named_parameters(prefix=name)
    return {each: _full_shape(parameter) for each, parameter in named}


def match(expected: Mapping[str, Shape], weights: Weights, *, bare: bool = False) -> Match:
    """Compares names and shapes; the prefix of the encoder is added or removed as needed.

    expected: full shapes of all parameters
    bare: whether they are of a model without a head

    Raises DataError where the folder has none of them.
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
            f"{weights.file_of(stored)} has {stored} with the shape {weights.shapes[stored]}, and "
            f"the model's is {expected[name]}; give a config that fits, or "
            f"ignore_mismatched_sizes=True to initialise such weights"
        )


def check_encoder(matched: Match, weights: Weights, optional: Iterable[str] = ()) -> None:
    """Raises DataError for the first weight of the encoder that is missing.

    A head may be missing, since it can be new, and so may names that contain one of `optional`.
    A folder that lacks a layer or an embedding is incomplete.
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
    initial: SetWeights | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Reads the slices of this rank into the parameters that `stored` names (see `Match`).

    name: the prefix of the parameters' names in `stored`
    initial: fills the others, if there are any. It runs before anything is read, while parameters
        that are read later are on the meta device and take no memory
    dtype: of all parameters, in place of their present ones; device: of those on the meta device

    A parameter on the meta device is replaced by a new one, which takes over its attributes and
    is shared by the same modules; other parameters keep their identity. Raises DataError.
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
        value = weights.read(stored[each], shard_of(parameter))
        if value.dtype != (dtype or parameter.dtype):
            size, value = value.nbytes, value.to(dtype or parameter.dtype)
            if size >= LARGE:
                release_free_memory()
        if parameter.is_meta:
            _replace(where, value.to(device))
        else:
            parameter.data = value.to(parameter.device)


def weights_setter(
    weights: Weights, expected: Mapping[str, Shape], initial: SetWeights
) -> SetWeights:
    """A `set_weights` for a list of stage layers: it loads each module when that is built.

    expected: full shapes of the model over all stages, so that every rank raises the same DataError
    initial: fills what the folder lacks, such as a head
    """
    matched = match(expected, weights)
    check_shapes(matched, expected, weights)
    check_encoder(matched, weights)

    def set_weights(module: nn.Module, name: str) -> nn.Module:
        load_parameters(module, weights, matched.stored, name=name, initial=initial)
        return module

    return set_weights


def _places(module: nn.Module, name: str) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every parameter by its first name, with all modules that hold it and its name there."""
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
    new = nn.Parameter(value, old.requires_grad)
    vars(new).update(vars(old))  # how it is split, and what DeepSpeed needs
    for owner, local in where:
        setattr(owner, local, new)


def _full_shape(parameter: nn.Parameter) -> Shape:
    shape, shard = list(parameter.shape), shard_of(parameter)
    if shard is not None:
        shape[shard.dim] *= group_size(shard.group)
    return tuple(shape)
