"""Memory of a rank over what its state needs, by layout: ZeRO 1 to 3, tensor and pipeline parallel.

python tests/bench/bench_memory.py [LAYOUT ...]   (tp-pp-dp-zero, as 1-1-4-z3 or 1-1-4-z3-bf16)

The theory is `parallel.memory.state_bytes`: weights, gradients and what the optimizer keeps, after
ZeRO has divided them. The peak is what the system counts as a rank's own memory (no files, so no
code of libraries) in two steps after a first one, less the same of a model of 0.1 million
parameters in the same layout: imports, process groups and gloo. Activations, of 16 tokens at a
time, are part of the peak. Freed memory is returned to the system at once: what the C library and
MKL keep of it is not what is measured.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Of the C library, which reads it when a process starts; as its side effect, large blocks are
# mapped one by one and unmapped when they are freed.
RETURNED = {
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_ARENA_MAX": "1",
    "MKL_DISABLE_FAST_MM": "1",
}
if RETURNED.items() - os.environ.items():
    os.execve(sys.executable, [sys.executable, "-P", *sys.argv], os.environ | RETURNED)

import torch  # noqa: E402

from mlm.model.config import ModelConfig  # noqa: E402
from parallel.layout import Layout  # noqa: E402
from tests.memory import forget_peak, resident  # noqa: E402
from tests.parallel.engine.engine_memory import build, model, step, theory  # noqa: E402
from tests.ranks import run_ranks  # noqa: E402

LARGE, SMALL = model(8192, 512, 11), model(512, 32, 2)  # a tenth in words, as of XXL
LAYOUTS = (
    *(f"1-1-{dp}-z{zero}" for dp in (2, 4) for zero in (1, 2, 3)),
    *("2-1-1-z1", "4-1-1-z1", "1-2-1-z1", "1-4-1-z1", "1-2-2-z1"),
    *(f"2-1-2-z{zero}" for zero in (1, 2, 3)),
    *(f"1-1-4-z{zero}-bf16" for zero in (1, 2, 3)),
)


def own() -> int:
    """Bytes that belong to no file, at the peak: files are mapped, and stay, from the first use."""
    return resident("VmHWM") - resident("RssFile") - resident("RssShmem")


def measure(config: ModelConfig, layout: Layout, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes at the peak of building, of training, and of the state."""
    forget_peak()
    engine = build(config, layout, dtype)
    building = own()
    step(engine, config, 0)
    forget_peak()
    for number in (1, 2):
        step(engine, config, number)
    return building, own(), theory(engine)


def main() -> None:
    print(
        f"{LARGE.parameters() / 1e6:.1f} million parameters; MB of the rank with the largest ratio"
    )
    print("layout             state training  ratio     state building  ratio")
    for name in sys.argv[1:] or LAYOUTS:
        degrees, *_ = name.replace("z", "").partition("-bf16")
        tp, pp, dp, zero = map(int, degrees.split("-"))
        layout = Layout(tp, pp, dp, zero)
        dtype = torch.bfloat16 if name.endswith("-bf16") else torch.float32
        ranks, empty = (
            run_ranks(layout.world_size, measure, config, layout, dtype)
            for config in (LARGE, SMALL)
        )
        row = []
        for kind in (1, 0):
            added = [one[kind] - other[kind] for one, other in zip(ranks, empty, strict=True)]
            ratios = [bytes_ / rank[2] for bytes_, rank in zip(added, ranks, strict=True)]
            worst = ratios.index(max(ratios))
            row.append(
                f"{ranks[worst][2] / 1e6:8.0f} {added[worst] / 1e6:8.0f} {ratios[worst]:6.2f}"
            )
        print(f"{name:14s}  {'  '.join(row)}", flush=True)


if __name__ == "__main__":
    main()
