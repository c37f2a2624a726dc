"""A head from outside of the package: ranks texts by a number for each."""

import torch.nn.functional as F
from torch import Tensor, nn

from mlm.family.classification import LabelledModel
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.head_layers import downstream_layers
from mlm.family.heads import HEADS, Card, Head
from mlm.family.plain import PlainModel


class Ranker(nn.Linear):
    def forward(self, x: Tensor, dropout_key: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(batch, seq_len, hidden_size) -> (batch, 1), from the mean over the tokens"""
        return super().forward(x.mean(dim=1))


class XLMRobertaXLForRanking(LabelledModel):
    head_name = "ranker"

    @staticmethod
    def make_head(config: XLMRobertaXLConfig) -> nn.Module:
        return Ranker(config.hidden_size, 1)

    @staticmethod
    def loss(
        config: XLMRobertaXLConfig, logits: Tensor, labels: Tensor, mask: Tensor | None
    ) -> Tensor:
        return F.margin_ranking_loss(logits[:-1, 0], logits[1:, 0], labels[:-1], margin=0.5)


def plain(model: PlainModel) -> Tensor:
    return model.linear(model.x.mean(dim=1), "ranker")


HEAD = Head(
    XLMRobertaXLForRanking,
    Card("A ranker of texts"),
    plain,
    weights=("ranker.weight",),
    layers=downstream_layers,
)
HEADS["XLMRobertaXLForRanking"] = HEAD
