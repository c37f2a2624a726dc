"""What this adapter expects of DeepSpeed beyond its documented interface.

Checked when an engine is built: another version of DeepSpeed fails there with one sentence, not in
the middle of a step.
"""

from collections.abc import Iterable
from typing import Any

VERSION = "0.19.8"

PIPELINE_MODULE = ("_partition_layers", "_set_bounds", "_topo", "forward_funcs", "tied_modules")
PIPELINE_ENGINE = (
    "_INSTRUCTION_MAP",
    "_bf16_reduce_grads",
    "buffered_allreduce_fallback",
    "total_loss",
    "using_bf16_optimizer",
)
# Of the optimizers that DeepSpeed wraps around ours.
ZERO_1_BF16 = (
    "_hp_optimizer_states_linked",
    "_lazy_init_hp_params_optimizer_state",
    "bf16_partitioned_groups",
    "fp32_groups_flat_partition",
    "fp32_groups_gradients_flat",
    "overflow",
    "real_dp_process_group",
)
ZERO_1_AND_2 = (
    "_hp_optimizer_states_linked",
    "_lazy_init_hp_params_optimizer_state",
    "_link_all_hp_params",
    "averaged_gradients",
    "get_grad_norm_direct",
    "overflow",
    "parallel_partitioned_bit16_groups",
    "params_in_partition",
    "real_dp_process_group",
    "scaled_global_norm",
    "single_partition_of_fp32_groups",
)
ZERO_3 = (
    "_get_param_partition_rank",
    "_reassign_or_swap_out_partitioned_parameters",
    "averaged_gradients",
    "fp16_partitioned_groups_flat",
    "fp32_partitioned_groups_flat",
    "get_local_fp32_param",
    "overflow",
    "persistent_parameters",
)
PARAMETER_ZERO_1_AND_2 = ("_hp_mapping",)
PARAMETER_ZERO_3 = ("_z3_optimizer", "ds_numel", "ds_shape", "ds_tensor")


class DeepSpeedChanged(RuntimeError):
    """The installed DeepSpeed lacks something that this adapter reads."""


def expect(thing: Any, names: Iterable[str]) -> None:
    """Raises `DeepSpeedChanged` where `thing` lacks one of the attributes `names`."""
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        import deepspeed

        raise DeepSpeedChanged(
            f"{type(thing).__name__} of deepspeed {deepspeed.__version__} has no "
            f"{', '.join(missing)}, which parallel/engine/deepspeed_adapter reads; install "
            f"deepspeed=={VERSION}"
        )
