"""The masked language model as one ordered list of layers, and as a whole for inference."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.batch import MicroBatch
from mlm.model.config import ModelConfig
from mlm.model.embeddings import PositionEmbeddings
from mlm.model.flops import decoder_flops, layer_flops, transform_flops
from mlm.model.heads import FinalNorm, MaskedLMHead, masked_lm_loss
from mlm.model.layer import EncoderLayer
from parallel.groups import Group, group_rank
from parallel.layers import VocabParallelEmbedding
from parallel.random import normal_
from parallel.stages import StageLayer, WholeModel, canonical_name

WORDS = "roberta.embeddings.word_embeddings"


def masked_lm_layers(
    config: ModelConfig,
    *,
    group: Group = None,
    seed: int = 0,
    attention: str = "auto",
    seq_len: int = 512,
    masked: int = 77,
) -> list[StageLayer]:
    """The list that the plain and the pipelined model are both made from.

    group: splits every layer; seed: of the initial weights, which do not depend on the group;
    seq_len and masked (positions per sequence) weigh the layers against each other.
    """
    hidden, vocab = config.hidden_size, config.padded_vocab_size()

    def made(name: str, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: _initialised(make(), name, config, seed)

    def words() -> nn.Module:
        return VocabParallelEmbedding(vocab, hidden, group)

    layer_parameters = _count(lambda: EncoderLayer(config, 0, None))
    layers = [
        StageLayer(WORDS, made(WORDS, words), vocab * hidden, 0.0, _embed, tied="words"),
        StageLayer(
            "roberta.embeddings",
            made("roberta.embeddings", lambda: PositionEmbeddings(config)),
            (config.max_position_embeddings + config.type_vocab_size) * hidden,
            0.0,
            joined=True,
        ),
    ]
    for index in range(config.num_hidden_layers):
        name = f"roberta.encoder.layer.{index}"
        make = made(name, lambda index=index: EncoderLayer(config, index, group, attention))
        flops = layer_flops(config, seq_len)
        layers.append(StageLayer(name, make, layer_parameters, flops, recompute=True))
    norm, head = "roberta.encoder.LayerNorm", "lm_head"
    layers += [
        StageLayer(
            norm,
            made(norm, lambda: FinalNorm(hidden, eps=config.layer_norm_eps)),
            2 * hidden,
            0.0,
        ),
        StageLayer(
            head,
            made(head, lambda: MaskedLMHead(config, group)),
            hidden * (hidden + 3) + vocab,
            transform_flops(config, masked),
            joined=True,
        ),
        StageLayer(
            WORDS,
            made(WORDS, words),
            vocab * hidden,
            decoder_flops(config, masked),
            masked_lm_loss,
            tied="words",
            joined=True,
        ),
    ]
    return layers


def _embed(words: VocabParallelEmbedding, ids: Tensor, batch: MicroBatch) -> Tensor:
    return words(ids)


def _count(make: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())


def _initialised(module: nn.Module, name: str, config: ModelConfig, seed: int) -> nn.Module:
    """Weights from N(0, initializer_range^2), biases 0, norms 1 and 0, the padding rows 0."""
    for local, parameter in module.named_parameters():
        full_name = f"{name}.{local}"
        if parameter.is_meta:
            continue
        if local.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" in full_name.lower().rsplit(".", 2)[-2]:
            nn.init.ones_(parameter)
        else:
            normal_(parameter, config.initializer_range, seed, full_name)
        if full_name.endswith((".word_embeddings.weight", ".position_embeddings.weight")):
            _zero_row(module, parameter, config.pad_token_id)
    return module


def _zero_row(module: nn.Module, parameter: nn.Parameter, row: int) -> None:
    if isinstance(module, VocabParallelEmbedding):
        row -= group_rank(module.group) * parameter.shape[0]
    if 0 <= row < parameter.shape[0]:
        with torch.no_grad():
            parameter[row].zero_()


class MaskedLM(nn.Module):
    """The whole model on one process, for inference: token ids to logits."""

    def __init__(self, config: ModelConfig, *, seed: int = 0, attention: str = "auto"):
        super().__init__()
        self.config = config
        self.layers = masked_lm_layers(config, seed=seed, attention=attention)
        self.whole = WholeModel(self.layers)

    def canonical_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter under its name in a checkpoint, which is the published one."""
        named = self.whole.named_parameters()
        return {canonical_name(self.layers, name): parameter for name, parameter in named}

    @torch.no_grad()
    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """input_ids: (batch, seq_len), padded at the end to `lengths` (batch,).

        Returns (batch, seq_len, vocab_size) fp32. Puts the model into evaluation mode.
        """
        self.eval()
        none = torch.zeros(len(lengths), 0, dtype=torch.long, device=input_ids.device)
        batch = MicroBatch(input_ids, lengths, none, none, torch.zeros_like(lengths))
        x = input_ids
        for call in self.whole.calls[:-2]:
            x = call(x, batch)
        head = self.whole.get_submodule(str(len(self.layers) - 2))
        assert isinstance(head, MaskedLMHead)
        weight = self.whole.tied_modules["words"].weight
        return F.linear(head.features(x), weight, head.bias).float()
