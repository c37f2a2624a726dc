"""Continued pretraining: the trained model that `weights=PATH` has a run start with."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlm.config import TrainConfig
from mlm.errors import DataError, UserError
from mlm.family.language import XLMRobertaXLForMaskedLM
from mlm.model.config import ModelConfig
from mlm.model.initial import initialise
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.opening import TrainedModel, family_config, open_trained
from mlm.weights.load import BASE, SetWeights, full_shapes, match, weights_setter
from mlm.weights.source import Weights
from parallel.engine.interface import Engine
from parallel.sharding import shard_of

# Settings of training and of new weights, which a run takes from its own config.
FROM_RUN = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "output_dropout",
    "initializer_range",
)
SHAPE = tuple(field.name for field in fields(ModelConfig) if field.name not in FROM_RUN)


@dataclass(frozen=True)
class StartingModel:
    """A model that a run can start with.

    path: absolute; of a run, its newest checkpoint
    model: the settings that it determines; tokenizer: None where it has none
    message: a sentence for the user
    """

    path: Path
    model: dict[str, Any]
    tokenizer: Tokenizer | None
    message: str


def starting_model(path: Path) -> StartingModel:
    """The model in a folder; raises UserError for one that pretraining cannot continue."""
    found = open_trained(path)
    kind = found.config.position_embedding_type
    if kind != "absolute":
        raise UserError(
            f"weights={path} has position_embedding_type={kind}, and models are pretrained with "
            f"absolute positions; give weights of such a model"
        )
    if found.config.pruned_heads:
        raise UserError(
            f"weights={path} has pruned heads, and models are pretrained with all of them; give "
            f"the weights before they were pruned"
        )
    shape = asdict(found.config.shape())
    return StartingModel(
        found.path.absolute(),
        {name: shape[name] for name in SHAPE},
        found.tokenizer,
        _message(found),
    )


def _message(found: TrainedModel) -> str:
    matched = match(_expected(found.config.shape()), found.weights)
    new, unused = (_modules(names) for names in (matched.missing, matched.unused))
    message = f"Starting with the weights of {found.path}, an {found.head}"
    if new:
        message += f"; it has no {new}, whose weights are new"
    if unused:
        message += f"; its {unused} is skipped"
    if found.config.is_decoder:
        message += "; it was a decoder, and now each token also sees those after it"
    return message


def _modules(names: list[str]) -> str:
    """The modules of some weights: the head, or parts of the encoder."""
    local = (name.removeprefix(BASE) for name in names)
    kept = {"crossattention" if "crossattention" in name else name.split(".")[0] for name in local}
    return " and ".join(sorted(kept))


def _expected(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return full_shapes(XLMRobertaXLForMaskedLM(family_config(model), seed=0))


@dataclass(frozen=True)
class StartingWeights:
    """The weights of `config.weights`, of which each rank reads its slices.

    stored: name of a parameter -> name in the weights; other parameters are new
    """

    weights: Weights
    set_weights: SetWeights
    stored: dict[str, str]

    def write_masters(self, engine: Engine) -> None:
        """Writes them in fp32 into an engine whose parameters are rounded; a collective."""

        def read(name: str, parameter: nn.Parameter) -> Tensor | None:
            stored = self.stored.get(name)
            if stored is None:
                return None
            return self.weights.read(stored, shard_of(parameter)).float()

        engine.write_masters(read)


def starting_weights(config: TrainConfig) -> StartingWeights:
    """Opens the weights on a rank; raises UserError where they are gone or have changed."""
    assert config.weights is not None
    weights = open_trained(Path(config.weights), verify=False).weights  # `starting_model` checked
    expected = _expected(config.model)

    def initial(module: nn.Module, name: str) -> nn.Module:
        return initialise(module, name, config.model, config.seed)

    set_weights = weights_setter(weights, expected, initial)  # checks them as well
    return StartingWeights(weights, set_weights, match(expected, weights).stored)


def tokenizer_for(start: StartingModel, given: str | None) -> str:
    """The folder of the tokenizer to train with: the `given` one, or else the model's.

    Raises UserError where these give different ids, or where there is none.
    """
    tokenizer = start.tokenizer
    if tokenizer is None and given is None:
        raise UserError(
            f"weights={start.path} has no tokenizer; add data.tokenizer=DIR, the one that the "
            f"model was trained with"
        )
    if given is None:
        assert tokenizer is not None
        return str(tokenizer.model_path.parent)
    if tokenizer is not None and not (found := Tokenizer.load(Path(given))).same_ids(tokenizer):
        raise DataError(
            f"data.tokenizer={given} is not the tokenizer of weights={start.path} (its hash is "
            f"{found.hash[:12]}, not {tokenizer.hash[:12]}), and ids would change their meaning; "
            f"remove this setting"
        )
    return given
