"""The layers of heads in a pipeline, after those of the encoder; the last one gives the loss."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mlm.batch.labelled_batch import LabelledBatch
from mlm.batch.micro_batch import IGNORED
from mlm.family.classification import DownstreamModel
from mlm.family.config import XLMRobertaXLConfig
from mlm.model.encoder import SetWeights, count
from mlm.model.heads import MaskedLMHead, Pooler
from mlm.model.masked_lm import lm_head_layers
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer
from parallel.sharding import group_of
from parallel.tensor.loss import linear_cross_entropy


@dataclass(frozen=True)
class HeadSettings:
    """What the layers of a head are made with.

    set_weights: sets the first weights of a module, by its published name; seq_len: used only to
    estimate the FLOPs by which layers are divided among stages
    """

    config: XLMRobertaXLConfig
    group: Group
    set_weights: SetWeights
    seq_len: int


def downstream_layers(model: type[DownstreamModel], settings: HeadSettings) -> list[StageLayer]:
    """The head of a task, after the pooler where it has one; outputs: `logits`."""
    config, set_weights = settings.config, settings.set_weights
    shape, name = config.shape(), model.head_name

    def pool(pooler: Pooler, x: Tensor, batch: LabelledBatch) -> Tensor:
        return pooler(x)

    def loss(head: Any, x: Tensor, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = head(x, batch.dropout_key)
        return model.batch_loss(config, logits, batch) * batch.loss_scale, {"logits": logits}

    layers = [
        StageLayer(
            name,
            lambda: set_weights(model.make_head(config), name),
            count(lambda: model.make_head(config)),
            0.0,
            loss,
            joined=True,
        )
    ]
    if not model.pooled:
        return layers
    pooler = StageLayer(
        "roberta.pooler",
        lambda: set_weights(Pooler(shape), "roberta.pooler"),
        count(lambda: Pooler(shape)),
        0.0,
        pool,
        joined=True,
    )
    return [pooler, *layers]


def masked_language_layers(model: type, settings: HeadSettings) -> list[StageLayer]:
    """Each position against its own label; outputs: `losses` (rows, seq_len)."""
    return _language_layers(settings, shifted=False)


def causal_language_layers(model: type, settings: HeadSettings) -> list[StageLayer]:
    """Each position against the label of the next; outputs: `losses` (rows, seq_len - 1)."""
    return _language_layers(settings, shifted=True)


def _language_layers(settings: HeadSettings, shifted: bool) -> list[StageLayer]:
    config = settings.config
    if config.label_smoothing:
        raise ValueError(
            f"label_smoothing={config.label_smoothing} is unsupported with the chunked loss of a "
            f"language model in stages; set it to 0"
        )

    def features(head: MaskedLMHead, x: Tensor, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        return head(x)

    def loss(
        words: nn.Embedding, head: tuple[Tensor, Tensor], batch: LabelledBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, bias = head
        labels = batch.labels
        if shifted:
            x, labels = x[:, :-1], labels[:, 1:]
        total, losses = linear_cross_entropy(
            x.flatten(0, 1), words.weight, bias, labels.reshape(-1), group_of(words.weight)
        )
        counted = (labels != IGNORED).sum().clamp(min=1)
        return total / counted * batch.loss_scale, {"losses": losses.view_as(labels)}

    return lm_head_layers(
        config.shape(), settings.set_weights, settings.group, settings.seq_len, loss, features
    )
