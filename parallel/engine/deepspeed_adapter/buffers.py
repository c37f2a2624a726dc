"""How large the buffers are that DeepSpeed communicates through."""

from collections.abc import Sequence

LEAST_BUCKET = 1 << 19  # 2 MB in fp32: below it a collective waits for its start, not for its data
MOST_BUCKET = 500_000_000  # DeepSpeed's default, whatever the model
MOST_PREFETCH, MOST_PERSISTENT = 50_000_000, 100_000  # its defaults, too
BUCKETS = 64  # of which a model is made


def buffer_sizes(zero: int, sizes: Sequence[int]) -> dict[str, int]:
    """Settings of DeepSpeed's `zero_optimization`, in elements.

    DeepSpeed's defaults are larger than a small model, so that ZeRO-2 and 3 would hold all
    gradients and weights that they divide. Here a bucket is 1/64 of the parameters of a rank, so
    that it and its copies in a reduction add little to a share at dp 4. It is large where
    bandwidth counts: 54 million elements for 3.5B parameters, 21 million for 10.7B over tp 8, which
    is 42 MB in bf16; PyTorch's DDP sends 25 MB at a time.

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
