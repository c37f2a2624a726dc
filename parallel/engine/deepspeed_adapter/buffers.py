"""How large the buffers are that DeepSpeed communicates through."""

from collections.abc import Sequence

LEAST_BUCKET = 1 << 20  # 4 MB in fp32: below it a collective waits for its start, not for its data
MOST_BUCKET = 500_000_000  # DeepSpeed's default, whatever the model
MOST_PREFETCH, MOST_PERSISTENT = 50_000_000, 100_000  # its defaults, too
BUCKETS = 32  # of which a model is made


def buffer_sizes(zero: int, sizes: Sequence[int]) -> dict[str, int]:
    """Settings of DeepSpeed's `zero_optimization`, in elements.

    DeepSpeed's defaults are larger than a small model, so that ZeRO-2 and 3 would hold all
    gradients and weights that they divide. Here a bucket is 1/32 of the parameters of a rank: with
    its copy in a reduction less than a tenth of what is divided at dp 4. It is large where it
    counts: 109 million elements for 3.5B parameters, 42 million for 10.7B over tp 8, above the 40
    million of Megatron-LM and the 25 MB of PyTorch's DDP, with which a collective reaches the
    bandwidth of its link.

    sizes: elements of the parameters of this rank, before ZeRO divides them
    """
    parameters, largest = sum(sizes), max(sizes)
    bucket = min(max(parameters // BUCKETS, LEAST_BUCKET), MOST_BUCKET, parameters)
    bucket += bucket % 2  # odd ones are refused
    found = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if zero < 3:
        return found
    return found | {
        "stage3_prefetch_bucket_size": min(bucket, MOST_PREFETCH),
        # Biases and norms stay whole; 0.1 % of a model holds no matrix, and a small one has few.
        "stage3_param_persistence_threshold": min(parameters // 1000, MOST_PERSISTENT),
        # Nothing is fetched ahead above this number. The largest, the tied word embeddings, are in
        # use from the first layer to the last; those of 10.7B are above DeepSpeed's default.
        "stage3_max_live_parameters": largest + 2 * bucket,
        # Kept from the end of the forward pass to the beginning of the backward pass.
        "stage3_max_reuse_distance": bucket,
    }
