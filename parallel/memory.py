"""Bytes of the training state of a rank: the one count that checks, benchmarks and plans share."""

from dataclasses import dataclass

from parallel.layout import Layout

FP32 = 4  # bytes of a number


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a rank's state, activations and communication buffers not included.

    optimizer: both moments of Adam and, where weights are rounded, their fp32 masters
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def state_bytes(parameters: int, layout: Layout, weight_bytes: int = FP32) -> StateBytes:
    """The state of a rank whose stage and tensor-parallel slice have so many parameters.

    ZeRO (Rajbhandari et al. 2020, section 5) divides the optimizer's part over the `layout.dp` data
    ranks from stage 1 on, gradients from stage 2 on and weights in stage 3. Gradients are summed in
    fp32. weight_bytes: of a weight that the model computes with; 4: it is its own master
    """
    weights, gradients = parameters * weight_bytes, parameters * FP32
    optimizer = parameters * FP32 * (2 if weight_bytes == FP32 else 3)
    return StateBytes(
        _share(weights, layout.dp if layout.zero >= 3 else 1),
        _share(gradients, layout.dp if layout.zero >= 2 else 1),
        _share(optimizer, layout.dp),
    )


def _share(whole: int, ranks: int) -> int:
    return -(-whole // ranks)
