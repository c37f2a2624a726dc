"""Memory and time of saving and loading a model over 4 ranks, at once and in the background.

python tests/bench/bench_checkpoint.py [--small]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.checkpoint.checkpoint_memory import cost
from tests.checkpoint.test_checkpoint_memory import LAYOUTS, model
from tests.ranks import run_ranks


def main() -> None:
    small = "--small" in sys.argv
    config = model(8192, 512, 12) if small else model(48_000, 1024, 16)
    print(
        f"weights of {4 * config.parameters() / 1e9:.2f} GB in fp32, with moments three times that"
    )
    print("layout     rank's own state   peak: save  background  load   held up: save  background")
    for layout in LAYOUTS:
        with TemporaryDirectory() as folder:
            ranks = run_ranks(4, cost, config, layout, Path(folder))
        state_bytes = max(rank.state_bytes for rank in ranks)
        save, back, load = (
            max(1 + getattr(rank, name) / rank.state_bytes for rank in ranks)
            for name in ("save", "background", "load")
        )
        waits = [
            max(getattr(rank, name) for rank in ranks)
            for name in ("save_seconds", "background_seconds")
        ]
        name = f"{layout.tp}-{layout.pp}-{layout.dp}-z{layout.zero}"
        print(
            f"{name:10s} {state_bytes / 1e6:12.0f} MB {save:14.2f} {back:11.2f} {load:5.2f} "
            f"{waits[0]:12.2f} s {waits[1]:9.2f} s"
        )


if __name__ == "__main__":
    main()
