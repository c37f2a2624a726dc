"""Compares two versions of this project by what eight small training runs give, bit for bit.

    python tests/bench/compare_versions.py record CHECKOUT OUT.json [--work DIR]
    python tests/bench/compare_versions.py compare ONE OTHER

`record` trains the runs below with the code in CHECKOUT, a folder that holds the package `launch`,
and writes what they gave into OUT.json. `compare` takes two such files, or checkouts, which are
recorded first, prints every difference, and ends with 1 where there is any, else with 0. A command
that fails ends the script with 2.

All is done through the command line (`python -m launch ...`), with the Python that runs this
script; no module of the project is imported, so that modules may move between the versions. Of
each run are recorded:

- metrics: loss, gradient norm and learning rate of every step, losses, tokens and epochs by
  language, and every evaluation; evaluation: the last one, as `evaluation.json` has it;
- ledger: sha256 of the hashes of all batches; audit: the text of a batch with its masks;
- checkpoint: sha256 of every tensor of the last one, moments included, as torch itself loads it;
- exported: sha256 of every file that `export` writes;

and of all together, prepared: sha256 of every file of the tokenizers and shards that were made.
Nothing with a time or the path of a folder is in it. Sums in floating point depend on the processor
and on the versions of the libraries, so record both versions on one machine with one Python. A
process takes one thread, a run up to four processes, and a record some minutes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

COMMON = """
    data.corpus=sample model=tiny data.seq_len=64 train.device=cpu tracker=none
    train.global_batch_size=16 train.micro_batch_size=4 train.log_every=1
    eval.every=4 checkpoint.every=4 checks.replicas_every=3 schedule.warmup_steps=2
"""
DROPOUT = "model.hidden_dropout_prob=0.1 model.attention_probs_dropout_prob=0.1"
# The settings of each start of each run, in this order; `weights` needs the first run.
RUNS = {
    "one": ["train.steps=8"],
    "tp": [f"train.steps=6 parallel.tp=2 train.attention=unfused schedule=cosine {DROPOUT}"],
    "pp": [f"train.steps=6 parallel.pp=2 train.recompute=true data.masking=span {DROPOUT}"],
    "tp-pp": ["train.steps=8 parallel.tp=2 parallel.pp=2 train.dtype=bf16 data.masking=word"],
    "zero1": [
        "train.steps=6 parallel.dp=2 parallel.zero=1 data.isolate_documents=true train.dtype=bf16 "
        "optim.clip=0"
    ],
    "zero2": [f"train.steps=6 parallel.dp=2 parallel.zero=2 optim.clip=0.05 {DROPOUT}"],
    "zero3-weights": [
        "train.steps=6 parallel.dp=2 parallel.zero=3 weights=runs/one train.recompute=true"
    ],
    "continued": [
        "train.steps=6 parallel.tp=2 parallel.dp=2 parallel.zero=2",
        "train.steps=10 parallel.pp=2 parallel.dp=2 parallel.zero=1 train.micro_batch_size=2",
    ],
}
# Of a row of metrics.jsonl; the others are times.
KEPT = ("loss", "grad_norm", "lr", "tokens", "incidents")
KEPT_ALSO = ("loss_by_", "tokens_by_", "epochs_by_", "eval_")  # how names begin


def record(checkout: Path, work: Path) -> dict[str, Any]:
    """What the runs give with the code in `checkout`; they are left in `work`, a new folder."""
    code = {"PYTHONPATH": str(checkout.resolve()), "PYTHONSAFEPATH": "1"}
    env = os.environ | code | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    work.mkdir(parents=True)
    python = partial(_python, work, env)
    _check_code(checkout, python)
    runs = {}
    for name, starts in RUNS.items():
        since = time.monotonic()
        for settings in starts:
            python("-m", "launch", "train", *COMMON.split(), *settings.split(), f"run.name={name}")
        runs[name] = _results(name, work, python)
        print(f"{checkout}: {name}, {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    return {"prepared": _hashes(work / "runs" / "prepared", but="lock"), "runs": runs}


def _python(work: Path, env: dict[str, str], *arguments: str) -> str:
    """Runs Python in `work`; returns what it printed."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, encoding="utf-8")
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"
        _fail(f"{' '.join(command)}\nin {work} ended with {done.returncode}:\n{said}")
    return done.stdout


def _check_code(checkout: Path, python: Callable[..., str]) -> None:
    """Ends the script where Python would take a package from elsewhere, as from an installation."""
    ours = sorted(path.parent.name for path in checkout.glob("*/__init__.py"))
    if "launch" not in ours:
        _fail(f"{checkout} is not a checkout of the project: it holds no package launch")
    ask = "import sys; from importlib.util import find_spec; print(find_spec(sys.argv[1]).origin)"
    for name in ours:
        place = python("-c", ask, name).strip()
        if Path(place).resolve() != (checkout / name / "__init__.py").resolve():
            _fail(f"Python finds {name} at {place}, not in {checkout}")


def _results(name: str, work: Path, python: Callable[..., str]) -> dict[str, Any]:
    run, exported = work / "runs" / name, work / "exported" / name
    exported.parent.mkdir(exist_ok=True)
    python("-m", "launch", "export", f"runs/{name}", f"exported/{name}")
    audit = python("-m", "launch", "audit", f"runs/{name}", "step=2", "rows=0")
    return {
        "metrics": _metrics(run / "metrics.jsonl"),
        "evaluation": json.loads((run / "evaluation.json").read_text("utf-8")),
        "ledger": _sha256(run / "ledger.bin"),
        "audit": audit.splitlines(),
        "checkpoint": _tensors(max((run / "checkpoints").glob("step-" + "[0-9]" * 8))),
        "exported": _hashes(exported),
    }


def _metrics(path: Path) -> dict[str, Any]:
    """Rows by what they are of: `step 3`, `evaluation 4`."""
    rows: dict[str, Any] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        name = f"{'evaluation' if 'eval_loss' in row else 'step'} {row['step']}"
        while name in rows:  # a step that is written twice is a difference, too
            name += " again"
        rows[name] = {
            key: value for key, value in row.items() if key in KEPT or key.startswith(KEPT_ALSO)
        }
    return rows


def _tensors(folder: Path) -> dict[str, str]:
    """sha256 of each tensor's type, shape and bytes, of a checkpoint in torch's own format."""
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    listed = FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        label: torch.zeros(item.size, dtype=item.properties.dtype)
        for label, item in listed.items()
        if isinstance(item, TensorStorageMetadata)
    }
    assert state.keys() == listed.keys(), "the checkpoint holds more than tensors"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as asked
        load(state, checkpoint_id=folder, no_dist=True)
    hashes = {}
    for label, tensor in sorted(state.items()):
        made = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        made.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        hashes[label] = made.hexdigest()
    return hashes


def _hashes(folder: Path, but: str = "") -> dict[str, str]:
    """sha256 of every file below `folder`, by its path there, `but` those of a name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != but)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(files)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flat(value: Any, place: str = "") -> dict[str, str]:
    """What a record holds, by its place in it."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {place: repr(value)}  # in which 0.0 is not -0.0, and 1 is not 1.0
    parts = (_flat(item, f"{place} / {name}" if place else name) for name, item in value.items())
    return {name: item for part in parts for name, item in part.items()}


def _recorded(given: Path) -> dict[str, Any]:
    """A record that is given as a file, or as a checkout to make it of."""
    if given.is_dir():
        with TemporaryDirectory(prefix="compare-versions-") as folder:
            return record(given, Path(folder) / "work")
    try:
        return json.loads(given.read_text("utf-8"))
    except (OSError, ValueError) as error:
        _fail(f"{given} is neither a checkout nor a record that can be read: {error}")


def _fail(sentence: str) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(2)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    modes = parser.add_subparsers(dest="mode", required=True)
    making = modes.add_parser("record", help="train the runs and write what they gave")
    making.add_argument("checkout", type=Path, help="a folder that holds the package launch")
    making.add_argument("out", type=Path, help="the JSON file to write")
    making.add_argument("--work", type=Path, help="a new folder to keep the runs in")
    comparing = modes.add_parser("compare", help="print the differences of two records")
    comparing.add_argument("one", type=Path, help="a record, or a checkout to record first")
    comparing.add_argument("other", type=Path, help="the same of the other version")
    given = parser.parse_args()
    if given.mode == "record":
        if given.work is not None and given.work.exists():
            _fail(f"{given.work} is there already; give a new folder")
        if not given.out.parent.is_dir():
            _fail(f"{given.out.parent} is not a folder, so {given.out} cannot be written")
        with TemporaryDirectory(prefix="compare-versions-") as folder:
            found = record(given.checkout, given.work or Path(folder) / "work")
        given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return 0
    one, other = _flat(_recorded(given.one)), _flat(_recorded(given.other))
    places = [place for place in one | other if one.get(place) != other.get(place)]
    for place in places:
        print(f"{place}: {one.get(place, 'nothing')} != {other.get(place, 'nothing')}")
    print(f"{len(places)} of {len(one | other)} values differ")
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main())
