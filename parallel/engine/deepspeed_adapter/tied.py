"""The gradient of a weight of which several pipeline stages have a copy."""

from typing import Any

import torch.distributed as dist
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads

from parallel.groups import Group


def keep_tied_copies_equal(engine: Any, dp: Group) -> None:
    """Makes a pipeline engine give all copies of a tied weight the same gradient, bit for bit.

    DeepSpeed sums a tied gradient over its stages and then, in a buffer with the others, over the
    data ranks. The order of that sum depends on the place in the buffer, which no two stages have
    in common; from three ranks on it changes the sum, and the copies drift apart (measured: from
    the first step). Here the sum over data ranks comes first, and is kept by the first of them,
    while the others have zeros.
    """
    if dp is None or dist.get_world_size(dp) < 3:
        return
    over_stages = engine._INSTRUCTION_MAP[ReduceTiedGrads]

    def over_data_ranks_first(self: Any) -> None:
        for weight, _ in self.module.get_tied_weights_and_groups():
            gradient = weight._hp_grad if self.using_bf16_optimizer else weight.grad
            dist.reduce(gradient, group_dst=0, group=dp)
            if dist.get_rank(dp) != 0:
                gradient.zero_()
        over_stages(self)

    engine._INSTRUCTION_MAP = {**engine._INSTRUCTION_MAP, ReduceTiedGrads: over_data_ranks_first}
