"""Whether the state of a run fits into memory, before anything is built."""

from dataclasses import replace
from math import ceil

from mlm.config import TaskConfig, TrainConfig
from mlm.errors import UserError
from parallel.layout import Layout
from parallel.memory import FP32, state_bytes

GB = 1e9


def rank_state_bytes(config: TrainConfig, layout: Layout) -> int:
    """What the state of a rank needs at least: a mean over tensor ranks and stages, in which what
    they hold alike counts once, and so does a vocabulary that is not known yet."""
    vocab = config.model.vocab_size or (config.data.vocab_size if config.data.corpus else 0)
    parameters = replace(config.model, vocab_size=vocab).parameters()
    weight_bytes = FP32 if config.train.dtype == "fp32" else 2
    return state_bytes(parameters // (layout.tp * layout.pp), layout, weight_bytes).total


def check_memory(
    config: TrainConfig, layout: Layout, limit: int | None, ranks: int, holder: str
) -> None:
    """Raises `UserError` where the state of `ranks` ranks is larger than the memory they share.

    limit: bytes; None: unknown, and nothing is refused; holder: whose memory it is, `machine` or
    `GPU`
    """
    if limit is None or config.task != TaskConfig():  # another task may train another model
        return
    needed = rank_state_bytes(config, layout)
    if needed * ranks <= limit:
        return
    together = f", {needed * ranks / GB:.1f} GB for the {ranks} ranks here" if ranks > 1 else ""
    raise UserError(
        f"weights, gradients and optimizer state need at least {needed / GB:.1f} GB per rank"
        f"{together}, and this {holder} has {limit / GB:.1f} GB; "
        f"{_remedy(config, layout, limit, ranks, holder)}"
    )


def _remedy(config: TrainConfig, layout: Layout, limit: int, ranks: int, holder: str) -> str:
    """Settings with which the state fits, or what it would take."""
    if layout.dp > 1 and layout.pp == 1:
        for zero in range(layout.zero + 1, 4):
            if rank_state_bytes(config, replace(layout, zero=zero)) * ranks <= limit:
                return f"choose parallel.zero={zero}, or a smaller model"
    whole = rank_state_bytes(config, Layout())
    if whole <= limit:  # the data ranks of a machine each have a copy
        return "choose parallel.dp=1, or a smaller model"
    return (
        f"choose a smaller model, or divide it over at least {ceil(whole / limit)} {holder}s of "
        f"this size by parallel.tp, parallel.pp, or parallel.dp with parallel.zero=3"
    )
