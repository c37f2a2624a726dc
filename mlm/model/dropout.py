"""Dropout as a module, whose masks follow keys."""

from torch import Tensor, nn

from parallel.keys import subkey
from parallel.random import dropout


class Dropout(nn.Dropout):
    """Drops by a key where the module is in training, with PyTorch's `p`."""

    def forward(self, x: Tensor, dropout_key: int | None, *site: int | str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """site: what tells this use of the key from others; None as a key: torch's generator"""
        if not self.training or not self.p:
            return x
        return dropout(x, self.p, subkey(dropout_key, *site))
