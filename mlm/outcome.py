"""How a run ended: `outcome.json`, from which the launcher makes its exit code."""

import json
import os
import tempfile
from pathlib import Path

OUTCOME, STOP = "outcome.json", "stop"


def write_outcome(
    run: Path, code: int, sentence: str, step: int | None = None, eval_loss: float | None = None
) -> None:
    """Writes the outcome unless there is one: the first rank that fails knows why, and those
    that fail after it only saw it go."""
    values = {"code": code, "sentence": sentence, "step": step, "eval_loss": eval_loss}
    handle, aside = tempfile.mkstemp(dir=run, prefix=OUTCOME)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(values, file)
    try:
        os.link(aside, run / OUTCOME)  # unlike a rename, it fails where there is one already
    except FileExistsError:
        pass
    finally:
        os.unlink(aside)
