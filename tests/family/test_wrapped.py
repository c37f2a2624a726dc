"""Gradients under DDP and FSDP, real processes, against one process and against transformers."""

import pytest

from tests.family.family_fixtures import GRADIENTS
from tests.family.family_wrapped import CLASSES, RANKS, WAYS, differences
from tests.ranks import run_ranks

SLOW = ("DDP", "DDP, gradient_as_bucket_view")  # right before outputs were dicts, too


@pytest.mark.ranks
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.slow) if way in SLOW else way for way in WAYS],
)
def test_wrapped_gradients_are_the_mean_over_ranks(way):
    for found in run_ranks(RANKS, differences, way, list(CLASSES)):
        for cls_name, (from_mean, from_transformers, _) in found.items():
            assert from_mean < GRADIENTS, cls_name
            assert from_transformers < GRADIENTS, cls_name
