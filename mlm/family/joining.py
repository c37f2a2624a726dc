"""The family's models and outputs as those of transformers, in a process that has imported it.

`Trainer`, pipelines and peft ask whether a model is a `transformers.PreTrainedModel` and an output
a `ModelOutput`, and save other models without a config. Inheriting from them would make every
process import transformers, or need it. So they become bases of our classes when the process
imports them, before or after ours. What our classes define themselves stays theirs.
"""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from torch import nn


class JoiningModel(nn.Module):
    """The place in our classes' ancestry where `transformers.PreTrainedModel` comes."""


class JoiningOutput(OrderedDict[str, Any]):
    """The place where `transformers.utils.ModelOutput` comes."""


PLACES: dict[str, tuple[type, str]] = {
    "transformers.modeling_utils": (JoiningModel, "PreTrainedModel"),
    "transformers.utils.generic": (JoiningOutput, "ModelOutput"),
}


class Joiner(MetaPathFinder):
    """Adds to the import of the modules in PLACES that our classes join."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in PLACES else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def run_and_join(module: ModuleType) -> None:
            run(module)
            join(fullname, module)

        loader.exec_module = run_and_join
        return spec


def join(name: str, module: ModuleType | None) -> bool:
    """Whether the module is there, and our classes have joined its class."""
    place, base = PLACES[name]
    found = getattr(module, base, None)
    if found is not None:
        place.__bases__ = (found,)
    return found is not None


if [name for name in PLACES if not join(name, sys.modules.get(name))]:
    sys.meta_path.insert(0, Joiner())
