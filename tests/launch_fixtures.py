"""A small corpus of two languages, and settings that make little work of it."""

import io
from pathlib import Path

from rich.console import Console

from mlm.config import TrainConfig, as_dict, load

ROOT = Path(__file__).parents[1]
SMALL = ["model=tiny", "data.vocab_size=200", "data.seq_len=32", "tracker=none", "train.device=cpu"]


def write_corpus(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"The river number {n} runs past {n * 7} old mills and a bridge.\n" for n in range(300)
    ]
    (folder / "en.txt").write_text("\n".join(lines))
    lines = [f"Der Fluss {n} fließt an {n * 3} alten Mühlen vorbei.\n" for n in range(200)]
    (folder / "de.txt").write_text("\n".join(lines))
    return folder


def small(corpus: Path, **data) -> TrainConfig:
    """The settings of `SMALL`, for what takes a config."""
    settings = as_dict(TrainConfig())
    settings["data"] |= {"corpus": str(corpus), "vocab_size": 200, "seq_len": 32, **data}
    return load(TrainConfig, settings)


def quiet() -> Console:
    return Console(file=io.StringIO())
