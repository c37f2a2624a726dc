"""What the tests of generation share: models with varied text, prompts, a source to attend to."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.family.family_decoding import CAUSAL, HIDDEN, SOURCE
from tests.family.family_fixtures import PAD, noise, our_model, pair, randomise, tokens

END, PROMPT, NEW = 2, 6, 9


@torch.no_grad()
def lively(*models: Any) -> None:
    """Weights for varied text, in which special tokens never come."""
    for model in models:
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "word_embeddings" not in name:
                parameter.mul_(8.0)
        model.lm_head.bias[[PAD, END]] = -100.0


@cache
def decoder(positions: str = "absolute", crossed: bool = False) -> Any:
    model = our_model(
        CAUSAL, is_decoder=True, add_cross_attention=crossed, position_embedding_type=positions
    )
    randomise(model, seed=4)
    lively(model)
    return model.eval()


@cache
def both(crossed: bool = False) -> tuple[Any, Any]:
    models = pair(CAUSAL, is_decoder=True, add_cross_attention=crossed)
    lively(*models)
    return models


def prompts(side: str = "none") -> tuple[Tensor, Tensor]:
    """(4, PROMPT) ids and their mask; with padding on the left the rows are of 6, 4, 1 and 5."""
    lengths = torch.tensor([PROMPT] * 4 if side == "none" else [PROMPT, 4, 1, 5])
    mask = torch.arange(PROMPT) >= PROMPT - lengths.unsqueeze(1)
    return tokens(4, PROMPT, seed=7).masked_fill(~mask, PAD), mask.long()


def source(rows: int = 4) -> dict[str, Tensor]:
    mask = torch.ones(rows, SOURCE).long()
    mask[0, 4:] = mask[-1, :3] = 0
    return {
        "encoder_hidden_states": noise(rows, SOURCE, HIDDEN, seed=9),
        "encoder_attention_mask": mask,
    }
