"""The classes of the family in one table: all that the project knows of each by its name.

A head from outside is an entry of `HEADS` under the name of its class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlm.family import plain
from mlm.family.classification import (
    XLMRobertaXLForMultipleChoice,
    XLMRobertaXLForSequenceClassification,
    XLMRobertaXLForTokenClassification,
)
from mlm.family.head_layers import (
    HeadSettings,
    causal_language_layers,
    downstream_layers,
    masked_language_layers,
)
from mlm.family.language import XLMRobertaXLForCausalLM, XLMRobertaXLForMaskedLM
from mlm.family.model import XLMRobertaXLModel
from mlm.family.pretrained import Pretrained
from mlm.family.question_answering import XLMRobertaXLForQuestionAnswering
from parallel.pipeline.stages import StageLayer

Given = dict[str, Tensor]  # arguments of a model by name, (rows, seq_len) each


@dataclass(frozen=True)
class Card:
    """What the card of an exported model says of its class.

    words: what it is; auto: the class of transformers that loads it, None: its own
    task: on the hub, None: it has none; call: arguments of the task's pipeline
    inputs: of the tokenizer, in an example without a pipeline
    labels: whether the config's labels are listed
    """

    words: str
    auto: str | None = None
    task: str | None = None
    call: str = ""
    inputs: str = ""
    labels: bool = False


def _logits(model: Any, given: Given) -> Tensor:
    return model(**given).logits


def _hidden_states(model: Any, given: Given) -> Tensor:
    out = model(**given)
    last, pooled = out.last_hidden_state, out.pooler_output
    return last if pooled is None else torch.cat([last, pooled.unsqueeze(1)], 1)


def _choice_logits(model: Any, given: Given) -> Tensor:
    return model(**{name: value.unsqueeze(1) for name, value in given.items()}).logits


def _span_logits(model: Any, given: Given) -> Tensor:
    out = model(**given)
    return torch.stack([out.start_logits, out.end_logits], -1)


@dataclass(frozen=True)
class Head:
    """What the project knows of a class, which itself has the module of its head and its loss.

    model: the class; its name is the one in the config.json of a folder
    card: its words in a model card
    plain: its outputs written out, and outputs: those of a model, ours or that of transformers,
        which an export compares
    weights: published names that a folder of this class has and others have not, by which it is
        known where its config names no class; decoder: which must be a decoder's, too
    layers: of the head in a pipeline, the last of which gives the loss; None: it has no loss
    tied: whether they share the word embeddings
    source: whether it takes hidden states of another text
    """

    model: type[Pretrained]
    card: Card
    plain: plain.PlainHead
    outputs: Callable[[Any, Given], Tensor] = _logits
    weights: tuple[str, ...] = ()
    decoder: bool = False
    layers: Callable[[Any, HeadSettings], list[StageLayer]] | None = None
    tied: bool = False
    source: bool = False


BARE, MASKED_LM = XLMRobertaXLModel.__name__, XLMRobertaXLForMaskedLM.__name__
_ENTRIES = (
    Head(
        XLMRobertaXLForCausalLM,
        Card(
            "A language model of the next token",
            "AutoModelForCausalLM",
            "text-generation",
            "'The river', max_new_tokens=20",
        ),
        plain.language,
        weights=("lm_head.dense.weight",),
        decoder=True,
        layers=causal_language_layers,
        tied=True,
        source=True,
    ),
    Head(
        XLMRobertaXLForMaskedLM,
        Card(
            "A masked language model",
            "AutoModelForMaskedLM",
            "fill-mask",
            "'The <mask> is a river.'",
        ),
        plain.language,
        weights=("lm_head.dense.weight",),
        layers=masked_language_layers,
        tied=True,
        source=True,
    ),
    Head(
        XLMRobertaXLForMultipleChoice,
        Card("A chooser of answers", "AutoModelForMultipleChoice"),
        plain.multiple_choice,
        _choice_logits,
        weights=("classifier.weight", "roberta.pooler.dense.weight"),
        layers=downstream_layers,
    ),
    Head(
        XLMRobertaXLForQuestionAnswering,
        Card(
            "A finder of answers in a text",
            "AutoModelForQuestionAnswering",
            "question-answering",
            inputs="'What is wide?', 'The river is wide.'",
        ),
        plain.question_answering,
        _span_logits,
        weights=("qa_outputs.weight",),
        layers=downstream_layers,
    ),
    Head(
        XLMRobertaXLForSequenceClassification,
        Card(
            "A classifier of texts",
            "AutoModelForSequenceClassification",
            "text-classification",
            "'The river is wide.'",
            labels=True,
        ),
        plain.sequence_classification,
        weights=("classifier.dense.weight",),
        layers=downstream_layers,
    ),
    Head(
        XLMRobertaXLForTokenClassification,
        Card(
            "A classifier of tokens",
            "AutoModelForTokenClassification",
            "token-classification",
            "'The river is wide.'",
            labels=True,
        ),
        plain.token_classification,
        weights=("classifier.weight",),
        layers=downstream_layers,
    ),
    Head(
        XLMRobertaXLModel,
        Card("An encoder", "AutoModel", "feature-extraction", "'The river.'"),
        plain.bare,
        _hidden_states,
        source=True,
    ),
)
HEADS: dict[str, Head] = {head.model.__name__: head for head in _ENTRIES}
