"""The heads that train, each as one list of layers that pipeline stages are cut from."""

from typing import Any

from torch import Tensor

from mlm.batch.task_batch import TaskBatch
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.language import XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from mlm.family.pretrained import Pretrained
from mlm.family.tasks import (
    LabelledModel,
    TaskModel,
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForQuestionAnswering,
)
from mlm.model.encoder import Fill, count, encoder_layers
from mlm.model.heads import MaskedLMHead, Pooler
from mlm.model.initial import initialise
from mlm.model.losses import checked_labels, mean_cross_entropy, span_loss
from mlm.model.masked_lm import lm_head_layers
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer
from parallel.tensor.layers import VocabParallelEmbedding
from parallel.tensor.loss import linear_cross_entropy

LANGUAGE_MODELS = (XLMRobertaXLForMaskedLM, XLMRobertaXLForCausalLM)


def stage_layers(
    kind: type[Pretrained],
    config: XLMRobertaXLConfig,
    *,
    group: Group = None,
    seed: int = 0,
    attention: str = "auto",
    seq_len: int = 512,
    fill: Fill | None = None,
) -> list[StageLayer]:
    """The model `kind` (a class of the family with a head) as layers for `build_engine`.

    The last one gives a micro-batch's mean loss times its `loss_scale`; batches are `TaskBatch`es.
    group: splits every layer; seed: of the initial weights; fill: gives a module, by its published
    name, other ones, such as `mlm.weights.load` reads from a folder; seq_len: weighs the layers.
    Raises ValueError for what a stage cannot do.
    """
    shape = config.shape()
    if config.add_cross_attention or config.pruned_heads:
        what = "add_cross_attention=True" if config.add_cross_attention else "pruned_heads"
        raise ValueError(
            f"{what} is not served in pipeline stages, whose layers are all alike and see one "
            f"text; train such a model as one module"
        )
    fill = fill or (lambda module, name: initialise(module, name, shape, seed))
    language = issubclass(kind, LANGUAGE_MODELS)
    layers = encoder_layers(
        shape,
        fill,
        group=group,
        seq_len=seq_len,
        options=config.layer_options(attention),
        tied=language,
    )
    if language:
        return layers + _language_head(kind, config, group, fill, seq_len)
    if not issubclass(kind, TaskModel):
        raise ValueError(
            f"{kind.__name__} has no head that gives a loss; choose one of the classes with For in "
            f"their names"
        )
    if kind.pooled:
        layers.append(
            StageLayer(
                "roberta.pooler",
                lambda: fill(Pooler(shape), "roberta.pooler"),
                count(lambda: Pooler(shape)),
                0.0,
                _alone,
                joined=True,
            )
        )
    name = kind.head_name
    layers.append(
        StageLayer(
            name,
            lambda: fill(kind.make_head(config), name),
            count(lambda: kind.make_head(config)),
            0.0,
            _task_loss(kind, config),
            joined=True,
        )
    )
    return layers


def _alone(module: Any, x: Tensor, batch: TaskBatch) -> Tensor:
    return module(x)


def _task_loss(kind: type[TaskModel], config: XLMRobertaXLConfig) -> Any:
    """A stage layer's `forward`: (head, hidden states, batch) -> scaled loss and logits."""

    def forward(head: Any, x: Tensor, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits, labels = head(x, batch.dropout_key), batch.labels
        smoothing = config.label_smoothing
        if issubclass(kind, LabelledModel):
            loss = kind.loss(config, logits, labels, batch.attention_mask)
        elif issubclass(kind, XLMRobertaXLForMultipleChoice):
            loss = mean_cross_entropy(logits.view(-1, batch.choices), labels, smoothing)
        else:
            assert issubclass(kind, XLMRobertaXLForQuestionAnswering)
            loss = span_loss(*logits.unbind(-1), *labels.unbind(-1), smoothing)
        return loss * batch.loss_scale, {"logits": logits}

    return forward


def _language_head(
    kind: type[Pretrained], config: XLMRobertaXLConfig, group: Group, fill: Fill, seq_len: int
) -> list[StageLayer]:
    if config.label_smoothing:
        raise ValueError(
            f"label_smoothing={config.label_smoothing} is not served with the chunked loss of a "
            f"language model in stages; set it to 0"
        )
    shape = config.shape()
    causal = issubclass(kind, XLMRobertaXLForCausalLM)
    hidden, vocab = shape.hidden_size, shape.padded_vocab_size()

    def features(head: MaskedLMHead, x: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        return head.features(x), head.bias

    def loss(
        words: VocabParallelEmbedding, head: tuple[Tensor, Tensor], batch: TaskBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, bias = head
        labels = batch.labels
        if causal:
            x, labels = x[:, :-1], labels[:, 1:]
        counted = checked_labels(labels, vocab).sum().clamp(min=1)
        total, losses = linear_cross_entropy(
            x.reshape(-1, hidden), words.weight, bias, labels.reshape(-1), words.group
        )
        return total / counted * batch.loss_scale, {"losses": losses.view_as(labels)}

    return lm_head_layers(shape, fill, group, seq_len, loss, features)
