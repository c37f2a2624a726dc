"""The head that marks where an answer starts and ends."""

from typing import Any

from torch import Tensor, nn

from mlm.batch.labelled_batch import LabelledBatch
from mlm.family.classification import DownstreamModel
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.inputs import check_tensors
from mlm.family.outputs import SpanOutput
from mlm.model.heads import LinearHead
from mlm.model.losses import (
    span_loss,
)


class XLMRobertaXLForQuestionAnswering(DownstreamModel):
    """Where an answer starts and ends: start_logits and end_logits (batch, seq_len)."""

    head_name = "qa_outputs"

    @staticmethod
    def make_head(config: XLMRobertaXLConfig) -> nn.Module:
        if config.num_labels != 2:
            raise ValueError(
                f"num_labels={config.num_labels} does not fit question answering, whose two "
                f"outputs are the start and the end of a span; leave num_labels out"
            )
        return LinearHead(config.shape(), 2, 0.0)

    @classmethod
    def batch_loss(cls, config: XLMRobertaXLConfig, logits: Tensor, batch: LabelledBatch) -> Tensor:
        starts, ends = logits.unbind(-1)
        first, last = batch.labels.unbind(-1)
        return span_loss(starts, ends, first, last, config.label_smoothing)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SpanOutput | tuple[Any, ...]:
        """Inputs as in `XLMRobertaXLModel`; start_positions, end_positions: (batch,) int64, both
        or none. A place after the input leaves the loss, a negative one counts as 0.

        Returns `loss` (mean of the two ends'), `start_logits`, `end_logits` (batch, seq_len),
        `hidden_states` and `attentions`.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError(
                "one of start_positions and end_positions is given; the loss needs both, so give "
                "both or none"
            )
        check_tensors(start_positions=start_positions, end_positions=end_positions)
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
        starts, ends = (part.squeeze(-1).contiguous() for part in logits.split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            smoothing = self.config.label_smoothing
            loss = span_loss(starts, ends, start_positions, end_positions, smoothing)
        made = SpanOutput(
            loss=loss,
            start_logits=starts,
            end_logits=ends,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return self.returned(made, return_dict)
