"""The unigram entropy of held-out tokens: the loss of a model that knows only frequencies."""

import numpy as np

from mlm.data.batches.batches import HeldOutBatches
from mlm.data.batches.masking import maskable


def unigram_entropy(heldout: HeldOutBatches) -> tuple[float, dict[str, float]]:
    """Nats per token of the blocks that an evaluation scores: overall, and by language.

    H = -sum p ln p, where p is the share of an id among all tokens of these blocks that can be
    masked (no special ids). The overall value is of the tokens of all languages, and comparable
    with the evaluation loss: a model with the same probabilities at every position cannot have a
    lower expected loss on these tokens. A language's value is of its own tokens alone; for few
    tokens it is too low, since the shares are estimated from the same tokens.
    """
    vocab_size = heldout.masking.vocab_size
    overall = np.zeros(vocab_size, np.int64)
    by_language: dict[str, float] = {}
    for language in np.unique(heldout.languages).tolist():
        counts = np.zeros(vocab_size, np.int64)
        for row in np.flatnonzero(heldout.languages == language).tolist():
            ids = heldout.block(row)
            ids = ids[maskable(ids, heldout.masking.mask_id)]
            np.add.at(counts, ids, 1)
        overall += counts
        by_language[heldout.reader.index.languages[language]] = _entropy(counts)
    return _entropy(overall), by_language


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
