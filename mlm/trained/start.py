"""What a run begins with where that is a trained model: `weights=PATH`, continued pretraining."""

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
from mlm.weights.load import BASE, Fill, filler, full_shapes, match
from mlm.weights.source import Weights
from parallel.engine.interface import Engine
from parallel.sharding import shard_of

# Settings of training, and of weights that are new: a run has its own.
OWN = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "output_dropout",
    "initializer_range",
)
SHAPE = tuple(field.name for field in fields(ModelConfig) if field.name not in OWN)


@dataclass(frozen=True)
class StartingModel:
    """A model to begin with.

    path: absolute; of a run, the checkpoint that is its newest now
    model: settings that come from it; tokenizer: None where it has none
    message: a sentence for the user
    """

    path: Path
    model: dict[str, Any]
    tokenizer: Tokenizer | None
    message: str


def starting_model(path: Path) -> StartingModel:
    """What a run would begin with; raises UserError for what cannot be gone on with."""
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
    said = f"Beginning with the weights of {found.path}, an {found.head}"
    if new:
        said += f"; it has no {new}, whose weights are new"
    if unused:
        said += f"; its {unused} is left out"
    if found.config.is_decoder:
        said += "; it was a decoder, and now each token sees those behind it, too"
    return said


def _modules(names: list[str]) -> str:
    """The modules that weights are of: the head, or what of the encoder."""
    plain = (name.removeprefix(BASE) for name in names)
    kept = {"crossattention" if "crossattention" in name else name.split(".")[0] for name in plain}
    return " and ".join(sorted(kept))


def _expected(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return full_shapes(XLMRobertaXLForMaskedLM(family_config(model), seed=0))


@dataclass(frozen=True)
class StartingWeights:
    """The weights of `config.weights`, of which each rank reads its slices."""

    weights: Weights
    fill: Fill
    stored: dict[str, str]  # name of a parameter -> name in the weights; others are new

    def masters(self, engine: Engine) -> None:
        """Puts them into an engine whose parameters are rounded, in fp32; a collective."""

        def read(name: str, parameter: nn.Parameter) -> Tensor | None:
            stored = self.stored.get(name)
            if stored is None:
                return None
            return self.weights.read(stored, shard_of(parameter)).float()

        engine.write_masters(read)


def starting_weights(config: TrainConfig) -> StartingWeights:
    """Opens them on a rank; raises UserError where they are not there any more, or are others."""
    assert config.weights is not None
    weights = open_trained(Path(config.weights), verify=False).weights  # `starting_model` checked
    expected = _expected(config.model)

    def initial(module: nn.Module, name: str) -> nn.Module:
        return initialise(module, name, config.model, config.seed)

    fill = filler(weights, expected, initial)  # which checks, too
    return StartingWeights(weights, fill, match(expected, weights).stored)


def tokenizer_for(start: StartingModel, given: str | None) -> str:
    """The folder of the tokenizer to train with: the model's, or the one `given`; raises UserError
    where these are not the same."""
    own = start.tokenizer
    if own is None and given is None:
        raise UserError(
            f"weights={start.path} has no tokenizer; add data.tokenizer=DIR, the one that the "
            f"model was trained with"
        )
    if given is None:
        assert own is not None
        return str(own.model_path.parent)
    if own is not None and not (found := Tokenizer.load(Path(given))).same_ids(own):
        raise DataError(
            f"data.tokenizer={given} is not the tokenizer of weights={start.path} (its hash is "
            f"{found.hash[:12]}, not {own.hash[:12]}), and ids would mean something else; leave it "
            f"out"
        )
    return given
