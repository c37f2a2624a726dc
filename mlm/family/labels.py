"""The values of labels, checked where they are given."""

from torch import Tensor

from mlm.batch.checks import values_checked
from mlm.batch.micro_batch import IGNORED


def check_classes(labels: Tensor, classes: int) -> None:
    """Raises ValueError at a label that is neither a class nor -100, where values are checked
    (`mlm.batch.checks`). What has another dtype or shape is left to the loss, which says so."""
    if labels.is_floating_point() or not values_checked(labels):
        return
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"the label {int(wrong[0])} is not one of the {classes} classes from 0 to "
            f"{classes - 1}; give one of them, or {IGNORED} to leave a place out of the loss"
        )
