"""`mlm audit`: what a run was trained on, computed from its seed and the index of its shards."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlm import checkpoint
from mlm.config import TrainConfig, load
from mlm.console import counted
from mlm.data.audit.exposure import Exposure
from mlm.data.audit.ledger import LEDGER, read_ledger
from mlm.data.checks import with_tokenizer
from mlm.data.reading.remote import open_index
from mlm.errors import DataError, UserError
from mlm.health.incidents import read_incidents, skipped_shards, skipped_steps
from mlm.tasks.pretraining.batches import training_batches
from mlm.tokenizer.ids import BOS, SPACE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.tracking.progress import progress

SAMPLED_STEPS = 64  # of the ledger that are compared, unless all are
NAMED_STEPS = 8  # in a sentence


@dataclass(frozen=True)
class LanguageExposure:
    """How much of a language a run has seen. tokens: without the `<s>` that begins each sample."""

    language: str
    samples: int
    tokens: int
    epochs: float


class Audit:
    """A run and its data; raises `UserError` if one of them is missing or has changed."""

    def __init__(self, run: Path) -> None:
        self.run = run
        try:
            settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
            before = json.loads((run / "data.json").read_text("utf-8"))["index"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            raise UserError(f"{run} is not a run folder; give one") from None
        config = load(TrainConfig, settings)
        self.config = replace(config, data=with_tokenizer(config.data))
        data, self.batch = self.config.data, self.config.train.global_batch_size
        self.index = open_index(str(data.shards), data.cache)
        if self.index.hash != before:
            raise DataError(
                f"the shards in {data.shards} have changed since {run} began ({before[:12]} then, "
                f"{self.index.hash[:12]} now); restore the old shards"
            )
        self.batches = training_batches(self.config, self.index, self.batch)
        self.order = self.batches.order
        self.ledger = read_ledger(run)
        self._check_ledger()
        incidents = read_incidents(run)
        self.bad_shards = skipped_shards(incidents)
        for shard, since in self.bad_shards.items():
            self.batches.reader.skip_shard(shard, since)
        # Incidents may skip steps that the run has not reached yet.
        steps = skipped_steps(incidents)
        self.skipped = sorted(step for step in steps if step < len(self.ledger))
        self.exposure = Exposure(
            self.order,
            self.batches.reader,
            self.batch,
            len(self.ledger),
            self.skipped,
            self.batches.reader.skipped_shards,
        )

    def _check_ledger(self) -> None:
        saved = checkpoint.newest(self.run)
        steps = 0 if saved is None else checkpoint.read_manifest(saved).step
        if len(self.ledger) < steps:
            raise DataError(
                f"the ledger of {self.run} has {len(self.ledger)} steps, and {saved} is of step "
                f"{steps}; restore the {LEDGER} that the run wrote"
            )
        if not len(self.ledger):
            raise UserError(f"{self.run} has no ledger, since it has taken no step; train it first")

    def seen(self) -> list[LanguageExposure]:
        """What the run has seen, by language; the cost does not grow with the run."""
        size = self.order.seq_len - 1
        return [
            LanguageExposure(name, count, count * size, count / int(blocks))
            for name, count, blocks in zip(
                self.index.languages,
                self.exposure.samples().tolist(),
                self.order.blocks,
                strict=True,
            )
        ]

    def write_documents(self, out: Path, console: Console) -> None:
        """Writes a line of JSON for each training document: how often the run has seen it."""
        if out.exists():
            raise UserError(
                f"documents={out} exists, and no file is overwritten; give another path"
            )
        size, tokens = self.order.seq_len - 1, sum(self.index.train_tokens)
        done = seen = count = 0
        try:
            with (
                out.open("w", encoding="utf-8") as file,
                progress(console, "Counting documents") as show,
            ):
                for number, language in enumerate(self.index.languages):
                    for place, one in enumerate(self.exposure.documents(number)):
                        row = {"language": language, "document": place, **asdict(one)}
                        file.write(json.dumps(row | {"block": one.start // size}) + "\n")
                        count, seen = count + 1, seen + (one.most > 0)
                    done += self.index.train_tokens[number]
                    show(done, tokens)
        except OSError as error:
            raise UserError(
                f"documents={out} cannot be written ({error.strerror}); give another path"
            ) from None
        console.print(
            f"The run has seen {seen:,} of {count:,} documents; {out} has a line for each",
        )

    def mismatches(self, steps: np.ndarray, show=lambda done, total: None) -> list[int]:
        """Those of `steps`, counted from 0, whose batch in the ledger is not the recomputed one."""
        found, skipped = [], set(self.skipped)
        for number, step in enumerate(steps.tolist()):
            if int(self.ledger[step]) != (0 if step in skipped else self._digest(step)):
                found.append(step)
            show(number + 1, len(steps))
        return found

    def show(self, every: bool, console: Console) -> None:
        """Prints what the run has seen; raises `DataError` if the ledger does not agree."""
        table = Table(box=None, pad_edge=False)
        for name in ("language", "samples", "tokens", "epochs"):
            table.add_column(name, justify="left" if name == "language" else "right")
        rows = self.seen()
        for row in rows:
            table.add_row(row.language, f"{row.samples:,}", f"{row.tokens:,}", f"{row.epochs:.3f}")
        total = sum(row.samples for row in rows), sum(row.tokens for row in rows)
        table.add_row("all", *(f"{value:,}" for value in total), "")
        console.print(table)
        steps = len(self.ledger)
        for step in self.skipped:
            first = step * self.batch
            console.print(
                f"Step {step + 1} is skipped: samples {first} to {first + self.batch - 1}",
            )
        for shard, since in self.bad_shards.items():
            console.print(
                f"Shard {shard} is skipped from step {since + 1} on",
            )
        compared = np.arange(steps)
        if not every:
            compared = np.unique(
                np.linspace(0, steps - 1, min(steps, SAMPLED_STEPS)).astype(np.int64)
            )
        with progress(console, "Comparing batches with the ledger") as show:
            wrong = self.mismatches(compared, show)
        if wrong:
            named = ", ".join(str(step + 1) for step in wrong[:NAMED_STEPS])
            named += "..." * (len(wrong) > NAMED_STEPS)
            raise DataError(
                f"the ledger of {self.run} does not match the batches of its seed and its shards "
                f"in {len(wrong)} of {len(compared)} steps ({named}); its shards or its ledger "
                f"have been changed"
            )
        console.print(
            f"The ledger of {counted(steps, 'step')} agrees, in all {len(compared):,} that were "
            f"compared",
        )

    def show_step(self, step: int, rows: int, console: Console) -> None:
        """Prints the batch of a step, counted from 1: `rows` of it, or all where that is 0."""
        if not 1 <= step <= len(self.ledger):
            raise UserError(
                f"step={step} is not a step that {self.run} has taken; give one from 1 to "
                f"{len(self.ledger)}"
            )
        tokenizer = Tokenizer.load(Path(str(self.config.data.tokenizer)))
        self.index.check_tokenizer(tokenizer)
        numbers = np.arange((step - 1) * self.batch, step * self.batch)
        languages, blocks = self.order.samples(numbers)
        batch = self.batches.micro_batch(step - 1, 0)
        pieces = list(tokenizer.vocabulary)
        for row in range(min(rows or self.batch, self.batch)):
            name = self.index.languages[int(languages[row])]
            head = f"sample {numbers[row]}: {name}, block {blocks[row]}"
            console.print(Text(head, style="bold"))
            console.print(
                _text(
                    pieces,
                    batch.input_ids[row].numpy(),
                    batch.positions[row].numpy(),
                    batch.targets[row].numpy(),
                ),
                soft_wrap=True,
            )
        if step - 1 in self.skipped:
            state = "skipped in training"
        elif int(self.ledger[step - 1]) == self._digest(step - 1):
            state = "the one in the ledger"
        else:
            state = "not the one in the ledger"
        console.print(f"The batch of step {step}, {counted(self.batch, 'sample')}, is {state}")

    def _digest(self, step: int) -> int:
        return int(np.int64(self.batches.micro_batch(step, 0).digest).astype(np.uint64))


def _text(pieces: list[str], ids: np.ndarray, positions: np.ndarray, targets: np.ndarray) -> Text:
    """The text of a row. A target is in brackets: the original piece and, after a colon, the piece
    that the model sees, unless that is `<mask>` or the same."""
    wanted = {int(place): int(id) for place, id in zip(positions, targets, strict=True) if id >= 0}
    text = Text()
    for place, id in enumerate(ids.tolist()):
        piece = pieces[id].replace(SPACE, " ")
        if place not in wanted:
            text.append(piece if id != BOS else "")
            continue
        target = pieces[wanted[place]].replace(SPACE, " ")
        seen = "" if piece == "<mask>" else ("=" if id == wanted[place] else f":{piece.strip()}")
        space = " " * (target[:1] == " ")
        text.append(f"{space}[{target.strip()}{seen}]", style="bold green")
    return text
