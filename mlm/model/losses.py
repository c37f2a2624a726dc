"""The losses of the heads, as transformers has them; where no label counts, 0 with 0 gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlm.batch.micro_batch import IGNORED

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


def mean_cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, ignored: int = IGNORED
) -> Tensor:
    """The mean over the labels that are not `ignored`, computed in fp32.

    logits: (..., classes); labels: (...) int64 from 0 to classes - 1, which is not checked here
    """
    classes = logits.shape[-1]
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}, and the logits ask for "
            f"{tuple(logits.shape[:-1])}; give one label to each"
        )
    if labels.is_floating_point():
        raise ValueError(
            f"labels of the dtype {labels.dtype} are given where each is the number of one of the "
            f"{classes} classes (single_label_classification); give them as torch.int64"
        )
    labels = labels.reshape(-1).long()
    total = F.cross_entropy(
        logits.reshape(-1, classes).float(),
        labels,
        ignore_index=ignored,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return total / (labels != ignored).sum().clamp(min=1)


def one_of_each(labels: Tensor, rows: int) -> Tensor:
    """Labels as (rows,), such as of (rows, 1); others as they are, for the loss to refuse."""
    return labels.reshape(-1) if labels.numel() == rows else labels


def next_token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Each position's logits against the label of the next.

    logits: (batch, seq_len, vocab_size); labels: (batch, seq_len), not shifted
    """
    if labels.shape != logits.shape[:-1]:
        return mean_cross_entropy(logits, labels)  # which says what is wrong
    return mean_cross_entropy(logits[:, :-1], labels[:, 1:], smoothing)


def problem_of(labels: Tensor, classes: int) -> str:
    """What labels are for where the config does not say: by their number and their dtype."""
    if classes == 1:
        return "regression"
    return PROBLEMS[2] if labels.is_floating_point() else PROBLEMS[1]


def classification_loss(
    logits: Tensor, labels: Tensor, problem: str | None = None, smoothing: float = 0.0
) -> Tensor:
    """Loss of a sequence's labels: squared error, cross entropy or binary cross entropies.

    logits: (batch, classes); labels: (batch,) int64 of one class each, (batch, classes) of 0 and 1
    for several, (batch,) or (batch, classes) of numbers for regression
    """
    problem = problem or problem_of(labels, logits.shape[-1])
    if problem == "single_label_classification":
        if labels.shape == logits.shape and not labels.is_floating_point():
            raise ValueError(
                f"labels of the dtype {labels.dtype} have the shape {tuple(labels.shape)}, and "
                f"{problem} asks for {tuple(labels.shape[:1])}; give one label to each row, or "
                f"several as floats (multi_label_classification)"
            )
        return mean_cross_entropy(logits, one_of_each(labels, len(logits)), smoothing)
    if smoothing:
        raise ValueError(
            f"label_smoothing={smoothing} is for single labels, and this is {problem}; set it to 0"
        )
    if labels.shape != logits.shape and not (
        logits.shape[-1] == 1 and labels.numel() == logits.numel()
    ):
        raise ValueError(
            f"labels have the shape {tuple(labels.shape)}, and {problem} with the logits "
            f"{tuple(logits.shape)} asks for one number for each; give as many"
        )
    labels = labels.reshape(logits.shape).to(logits.dtype)
    if problem == "regression":
        return F.mse_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)


def labels_of_real_tokens(labels: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Labels (batch, seq_len) with -100 where a mask of that shape is not 1; a mask of each query
    does not say which tokens are padding."""
    if attention_mask is None or attention_mask.shape != labels.shape:
        return labels
    return labels.masked_fill(attention_mask != 1, IGNORED)


def span_loss(
    start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, smoothing: float = 0.0
) -> Tensor:
    """The mean of the losses of a span's two ends; an end outside the text does not count.

    start_logits, end_logits: (batch, seq_len); starts, ends: (batch,) or (batch, 1)
    A negative place counts as 0, as in transformers.
    """
    outside = start_logits.shape[1]
    losses = [
        mean_cross_entropy(logits, places.clamp(0, outside), smoothing, outside)
        for logits, places in (
            (start_logits, one_of_each(starts, len(start_logits))),
            (end_logits, one_of_each(ends, len(end_logits))),
        )
    ]
    return torch.stack(losses).mean()
