"""Our masking against transformers' DataCollatorForLanguageModeling, interleaved in one run.

    python tests/bench/bench_mask.py [--rows 8 64 256 --rounds 9]

All mask the same rows of 512 ids at 15 %, 80/10/10, on one thread. The collator is called in each
way that its documentation has: rows alone, and rows with the `special_tokens_mask` that it asks for
for speed (made beforehand, outside of the time), as lists or as arrays, to torch and to numpy; and
as transformers' run_mlm.py does, lists with an attention mask and `special_tokens_mask`. It draws
each token by itself, and so another number in each row; ours draws exactly 77 of each row, keyed by
the row, and also gives the positions and targets that the model's head runs on. The limit is what
no masking can leave out: one vectorised draw of numpy for every token, and the replacement of those
that it hits.

Tokens per CPU second, medians of the rounds with least and most; rounds alternate A B C A B C ...,
and a ratio is taken round by round.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import tokenizers
import torch
import transformers

from mlm.batch.micro_batch import IGNORED
from mlm.data.batches.masking import Masking
from mlm.data.draw import bits
from mlm.tokenizer.ids import BOS, EOS, FIRST_PIECE
from parallel.keys import key

VOCAB, SEQ_LEN, RATIO = 250002, 512, 0.15
CHECKED = 1 << 18  # tokens of which the parts that are masked are taken
SECONDS = 0.2  # of CPU, of one contender in one round, at least


def blocks(rows: int) -> np.ndarray:
    """Rows as in training: `<s>`, then documents one after another, each ended by `</s>`."""
    random = np.random.default_rng(0)
    ids = random.integers(FIRST_PIECE, VOCAB - 1, (rows, SEQ_LEN))
    ids[random.random(ids.shape) < 1 / 400] = EOS
    ids[:, 0] = BOS
    return ids


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """As many ids as ours, so that the collator draws from the same range."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*special, *map(str, range(FIRST_PIECE, VOCAB - 1)), "<mask>"]
    model = tokenizers.models.WordLevel({piece: n for n, piece in enumerate(pieces)}, "<unk>")
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    given = dict(zip(names, [*special, "<mask>"], strict=True))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), **given
    )
    assert len(made) == VOCAB, len(made)
    return made


def collators(ids: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The documented ways to call the collator."""
    made, special = tokenizer(), (ids < FIRST_PIECE).astype(np.int64)
    lists, arrays = ids.tolist(), list(ids)
    tensors = list(torch.from_numpy(ids))
    pairs = list(zip(lists, special.tolist(), strict=True))
    ones = [1] * ids.shape[1]
    script = [row | {"attention_mask": ones} for row in _rows(pairs)]
    as_arrays = list(zip(arrays, special, strict=True))
    as_tensors = list(zip(tensors, torch.from_numpy(special), strict=True))
    ways = {
        "as run_mlm.py calls it": ("pt", script),
        "torch, rows": ("pt", tensors),
        "torch, lists and special_tokens_mask": ("pt", _rows(pairs)),
        "torch, tensors and special_tokens_mask": ("pt", _rows(as_tensors)),
        "numpy, rows": ("np", arrays),
        "numpy, lists and special_tokens_mask": ("np", _rows(pairs)),
        "numpy, arrays and special_tokens_mask": ("np", _rows(as_arrays)),
    }
    calls = {}
    for name, (kind, examples) in ways.items():
        collator = transformers.DataCollatorForLanguageModeling(
            made, mlm_probability=RATIO, return_tensors=kind
        )
        calls[f"collator: {name}"] = lambda collator=collator, examples=examples: collator(examples)
    return calls


def _rows(pairs: list[tuple]) -> list[dict]:
    return [{"input_ids": ids, "special_tokens_mask": special} for ids, special in pairs]


def one_draw(ids: np.ndarray) -> Callable[[], Any]:
    """The limit: a float for each token, and both arrays that a model takes."""
    random, mask_id = np.random.default_rng(0), VOCAB - 1

    def call() -> tuple[np.ndarray, np.ndarray]:
        drawn = random.random(ids.shape, np.float32)
        hit = drawn < RATIO
        labels = np.where(hit, ids, IGNORED)
        masked = np.where(drawn < 0.8 * RATIO, mask_id, ids)
        other = np.flatnonzero(hit & (drawn > 0.9 * RATIO))
        masked.ravel()[other] = random.integers(FIRST_PIECE, mask_id, len(other))
        return masked, labels

    return call


def ours(ids: np.ndarray) -> Callable[[], Any]:
    """As in a run: the int32 ids of the shards, and a key for each sample number."""
    masking, mask_key = Masking(RATIO, VOCAB), np.uint64(key(1, "mask"))
    lengths, read = np.full(len(ids), SEQ_LEN), ids.astype(np.int32)

    def call() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keys = bits(mask_key, np.arange(len(ids), dtype=np.uint64))
        return masking(read, lengths, keys)

    return call


def check(name: str, ids: np.ndarray, call: Callable[[], Any]) -> None:
    """Checks that the requested share of tokens is masked, and only tokens that may be."""
    parts = []
    for _ in range(-(-CHECKED // ids.size)):
        made = call()
        if name == "ours":
            masked, positions, targets = made
            labels = np.full_like(ids, IGNORED)
            np.put_along_axis(labels, positions, targets, 1)
        else:
            pair = made if isinstance(made, tuple) else (made["input_ids"], made["labels"])
            masked, labels = map(np.asarray, pair)
        hit = labels != IGNORED
        assert masked.shape == labels.shape == ids.shape, (name, masked.shape)
        assert np.array_equal(labels[hit], ids[hit]), name
        assert np.array_equal(masked[~hit], ids[~hit]), name
        shown = masked[hit]
        parts.append([hit.mean(), (shown == VOCAB - 1).mean(), (shown == labels[hit]).mean()])
    # A keyed draw is the same in each call, and 8 rows are a small sample.
    found, wanted = np.mean(parts, axis=0), np.array([RATIO, 0.8, 0.1])
    assert (abs(found - wanted) < [0.01, 0.06, 0.06]).all(), (name, found)


def rate(call: Callable[[], Any], tokens: int) -> float:
    """Tokens per CPU second of this process, all of its threads together."""
    calls, start = 0, time.process_time()
    while (taken := time.process_time() - start) < SECONDS:
        call()
        calls += 1
    return calls * tokens / taken


def compare(rows: int, rounds: int) -> None:
    """Times all in alternation over the same rows; the first round warms up."""
    ids = blocks(rows)
    calls = {"ours": ours(ids), "limit: one draw in numpy": one_draw(ids), **collators(ids)}
    for name, call in calls.items():
        check(name, ids, call)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            rates[name].append(rate(call, ids.size))
    rates = {name: each[1:] for name, each in rates.items()}
    print(f"{rows} rows: million tokens per CPU second, {rounds} rounds")
    for name, each in rates.items():
        ratios = [a / b for a, b in zip(rates["ours"], each, strict=True)]
        times = f"  ours is {_spread(ratios, 1)} times that" if name != "ours" else ""
        print(f"  {name:50s} {_spread([value / 1e6 for value in each], 2)}{times}", flush=True)


def _spread(values: list[float], digits: int) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} (from {least:.{digits}f} to {most:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    versions = {module.__name__: module.__version__ for module in (transformers, torch, np)}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    for rows in given.rows:
        compare(rows, given.rounds)


if __name__ == "__main__":
    main()
