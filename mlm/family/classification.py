"""The heads that classify sequences, tokens and choices."""

from typing import Any

from torch import Tensor, nn

from mlm.batch.labelled_batch import LabelledBatch
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.inputs import check_tensors
from mlm.family.labels import check_classes
from mlm.family.model import Headed
from mlm.family.outputs import HeadOutput
from mlm.model.heads import ClassificationHead, LinearHead
from mlm.model.losses import (
    PROBLEMS,
    classification_loss,
    labels_of_real_tokens,
    mean_cross_entropy,
    one_of_each,
    problem_of,
)


class DownstreamModel(Headed):
    """An encoder with a head for a downstream task."""

    head_name = "classifier"

    def new_head(self) -> nn.Module:
        return self.make_head(self.config)

    @property
    def num_labels(self) -> int:
        return self.config.num_labels

    @staticmethod
    def make_head(config: XLMRobertaXLConfig) -> nn.Module:
        """The head with weights that are yet to be filled."""
        raise AssertionError("a task names its head")

    @classmethod
    def batch_loss(cls, config: XLMRobertaXLConfig, logits: Tensor, batch: LabelledBatch) -> Tensor:
        """The mean loss of a micro-batch, of what the head gives."""
        raise AssertionError("a task says what its loss is")


class LabelledModel(DownstreamModel):
    """A head whose logits go with one tensor of labels."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Inputs as in `XLMRobertaXLModel`, labels as the class says.

        Returns `loss`, `logits`, `hidden_states` and `attentions`.
        """
        check_tensors(labels=labels)
        dropout_key = self.dropout_key()
        out = self.roberta(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            dropout_key=dropout_key,
        )
        logits = self.head(out.last_hidden_state, dropout_key)
        loss = None
        if labels is not None:
            self.check_labels(self.config, labels, attention_mask)
            loss = self.loss(self.config, logits, labels, attention_mask)
        made = HeadOutput(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return self.returned(made, return_dict)

    @staticmethod
    def loss(
        config: XLMRobertaXLConfig, logits: Tensor, labels: Tensor, mask: Tensor | None
    ) -> Tensor:
        raise AssertionError("a task says what its loss is")

    @classmethod
    def batch_loss(cls, config: XLMRobertaXLConfig, logits: Tensor, batch: LabelledBatch) -> Tensor:
        return cls.loss(config, logits, batch.labels, batch.attention_mask)


class XLMRobertaXLForSequenceClassification(LabelledModel):
    """Labels of whole rows, from the first token: logits (batch, num_labels).

    labels: (batch,) int64 for one label of each row, (batch, num_labels) of 0.0 and 1.0 for
    several, numbers for regression; which one, `config.problem_type` says, or else by
    num_labels (1: regression) and the labels' dtype.
    """

    @staticmethod
    def make_head(config: XLMRobertaXLConfig) -> nn.Module:
        return ClassificationHead(config.shape(), config.num_labels, config.head_dropout)

    @staticmethod
    def loss(
        config: XLMRobertaXLConfig, logits: Tensor, labels: Tensor, mask: Tensor | None
    ) -> Tensor:
        return classification_loss(logits, labels, config.problem_type, config.label_smoothing)

    @classmethod
    def check_labels(
        cls,
        config: XLMRobertaXLConfig,
        labels: Tensor,
        mask: Tensor | None = None,
        choices: int = 1,
    ) -> None:
        if (config.problem_type or problem_of(labels, config.num_labels)) == PROBLEMS[1]:
            check_classes(labels, config.num_labels)


class XLMRobertaXLForTokenClassification(LabelledModel):
    """A label for every token: logits (batch, seq_len, num_labels).

    labels: (batch, seq_len) int64. Tokens whose label is -100, or whose 2-D attention_mask is not
    1, leave the loss; a 3-D mask does not say which tokens are padding, so there labels alone do.
    """

    @staticmethod
    def make_head(config: XLMRobertaXLConfig) -> nn.Module:
        return LinearHead(config.shape(), config.num_labels, config.head_dropout)

    @staticmethod
    def loss(
        config: XLMRobertaXLConfig, logits: Tensor, labels: Tensor, mask: Tensor | None
    ) -> Tensor:
        labels = labels_of_real_tokens(labels, mask)
        return mean_cross_entropy(logits, labels, config.label_smoothing)

    @classmethod
    def check_labels(
        cls,
        config: XLMRobertaXLConfig,
        labels: Tensor,
        mask: Tensor | None = None,
        choices: int = 1,
    ) -> None:
        check_classes(labels_of_real_tokens(labels, mask), config.num_labels)


class XLMRobertaXLForMultipleChoice(DownstreamModel):
    """Which of several rows is the right one: logits (batch, choices)."""

    pooled = True

    @staticmethod
    def make_head(config: XLMRobertaXLConfig) -> nn.Module:
        return LinearHead(config.shape(), 1, config.hidden_dropout_prob)

    @classmethod
    def batch_loss(cls, config: XLMRobertaXLConfig, logits: Tensor, batch: LabelledBatch) -> Tensor:
        logits = logits.view(-1, batch.choices)
        return mean_cross_entropy(logits, batch.labels, config.label_smoothing)

    @classmethod
    def check_labels(
        cls,
        config: XLMRobertaXLConfig,
        labels: Tensor,
        mask: Tensor | None = None,
        choices: int = 1,
    ) -> None:
        check_classes(labels, choices)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> HeadOutput | tuple[Any, ...]:
        """Inputs as in `XLMRobertaXLModel` with choices after the batch, (batch, choices, ...);
        labels: (batch,) int64, the right choices.

        Returns `loss`, `logits` (batch, choices), and `hidden_states` and `attentions` of
        (batch * choices) rows.
        """
        rows = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        check_tensors(labels=labels, **rows)
        some = input_ids if input_ids is not None else inputs_embeds
        _check_choices(rows, some)
        dropout_key = self.dropout_key()
        out = self.roberta(
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            dropout_key=dropout_key,
            **{name: None if x is None else x.flatten(0, 1) for name, x in rows.items()},
        )
        assert some is not None
        logits = self.head(out.pooler_output, dropout_key).view(-1, some.shape[1])
        loss = None
        if labels is not None:
            labels = one_of_each(labels, len(logits))
            self.check_labels(self.config, labels, choices=logits.shape[1])
            loss = mean_cross_entropy(logits, labels, self.config.label_smoothing)
        made = HeadOutput(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return self.returned(made, return_dict)


def _check_choices(rows: dict[str, Tensor | None], some: Tensor | None) -> None:
    """Raises ValueError unless all have the batch and the choices of `some`, ids or vectors, or one
    row for all."""
    for name, given in rows.items():
        if given is None or some is None:
            continue
        sizes = (3, 4) if name == "attention_mask" else (4,) if name == "inputs_embeds" else (3,)
        first = tuple(given.shape[:2])
        if given.dim() not in sizes or first not in (tuple(some.shape[:2]), (1, 1)):
            more = ", hidden_size" if name == "inputs_embeds" else ""
            raise ValueError(
                f"{name} has the shape {tuple(given.shape)}, and (batch, choices, seq_len{more}) "
                f"of one batch is expected; give a row for each choice"
            )
