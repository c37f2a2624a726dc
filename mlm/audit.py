"""`mlm audit`: what a run was trained on, made anew from its seed and the index of its shards."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlm.build import training_batches
from mlm.config import TrainConfig, load
from mlm.data.ledger import read_ledger
from mlm.data.remote import open_index
from mlm.errors import DataError, UserError
from mlm.incidents import read_incidents, steps_left_out
from mlm.prepare import with_tokenizer
from mlm.progress import progress
from mlm.text.ids import BOS, SPACE
from mlm.text.tokenizer import Tokenizer

LOOKED_AT = 64  # steps of the ledger, where not every one is
NAMED = 8  # steps that a sentence names


@dataclass(frozen=True)
class Seen:
    """What a run has seen of a language. tokens: without `<s>`, which each sample begins with."""

    language: str
    samples: int
    tokens: int
    epochs: float


class Audit:
    """A run and its data; raises `UserError` where one of them is not there, or not what it was."""

    def __init__(self, run: Path) -> None:
        self.run = run
        try:
            settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
            before = json.loads((run / "data.json").read_text("utf-8"))["index"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            raise UserError(f"{run} is not the folder of a run; give one") from None
        self.config = with_tokenizer(load(TrainConfig, settings))
        data, self.batch = self.config.data, self.config.train.global_batch_size
        self.index = open_index(str(data.shards), data.cache)
        if self.index.hash != before:
            raise DataError(
                f"the shards in {data.shards} have changed since {run} began ({before[:12]} then, "
                f"{self.index.hash[:12]} now); give back the old shards"
            )
        self.batches = training_batches(self.config, self.index, self.batch)
        self.order = self.batches.order
        self.ledger = read_ledger(run)
        if not len(self.ledger):
            raise UserError(f"{run} has no ledger, since it has made no step; train it first")
        # What a later start is to leave out has not been reached.
        left_out = steps_left_out(read_incidents(run))
        self.left_out = sorted(step for step in left_out if step < len(self.ledger))

    def seen(self) -> list[Seen]:
        """What the run has seen, in the order of languages; its cost does not grow with the run."""
        counts = self.order.samples_per_language(len(self.ledger) * self.batch)
        for step in self.left_out:
            drawn, _ = self.order.samples(np.arange(step * self.batch, (step + 1) * self.batch))
            counts = counts - np.bincount(drawn, minlength=len(counts))
        size = self.order.seq_len - 1
        return [
            Seen(name, count, count * size, count / int(blocks))
            for name, count, blocks in zip(
                self.index.languages, counts.tolist(), self.order.blocks, strict=True
            )
        ]

    def wrong(self, steps: np.ndarray, show=lambda done, total: None) -> list[int]:
        """Those of `steps`, from 0, in which the ledger has another batch than made anew."""
        found, out = [], set(self.left_out)
        for number, step in enumerate(steps.tolist()):
            if int(self.ledger[step]) != (0 if step in out else self._digest(step)):
                found.append(step)
            show(number + 1, len(steps))
        return found

    def show(self, every: bool, console: Console) -> None:
        """Prints it; raises `DataError` where the ledger does not agree."""
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
        for step in self.left_out:
            first = step * self.batch
            console.print(
                f"Step {step + 1} is left out: samples {first} to {first + self.batch - 1}",
                highlight=False,
            )
        looked = np.arange(steps)
        if not every:
            looked = np.unique(np.linspace(0, steps - 1, min(steps, LOOKED_AT)).astype(np.int64))
        with progress(console, "Comparing batches with the ledger") as show:
            wrong = self.wrong(looked, show)
        if wrong:
            named = ", ".join(str(step + 1) for step in wrong[:NAMED])
            raise DataError(
                f"the ledger of {self.run} has other batches than its seed and its shards give in "
                f"{len(wrong)} of {len(looked)} steps ({named}{'...' * (len(wrong) > NAMED)}); its "
                f"shards or its ledger have been changed"
            )
        console.print(
            f"The ledger of {steps:,} steps agrees, in all {len(looked):,} that were compared",
            highlight=False,
        )

    def show_step(self, step: int, rows: int, console: Console) -> None:
        """Prints the batch of a step, counted from 1: `rows` of it, or all where that is 0."""
        if not 1 <= step <= len(self.ledger):
            raise UserError(
                f"step={step} is not one that {self.run} has made; give one from 1 to "
                f"{len(self.ledger)}"
            )
        tokenizer = Tokenizer.load(Path(str(self.config.data.tokenizer)))
        self.index.check_tokenizer(tokenizer)
        numbers = np.arange((step - 1) * self.batch, step * self.batch)
        languages, blocks = self.order.samples(numbers)
        batch = self.batches.micro_batch(step - 1, 0)
        pieces = np.array(tokenizer.vocabulary, object)
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
        if step - 1 in self.left_out:
            state = "left out of training"
        elif int(self.ledger[step - 1]) == self._digest(step - 1):
            state = "as the ledger has it"
        else:
            state = "not what the ledger has"
        console.print(f"The batch of step {step}, {self.batch} samples, is {state}")

    def _digest(self, step: int) -> int:
        return int(np.int64(self.batches.micro_batch(step, 0).digest).astype(np.uint64))


def _text(pieces: np.ndarray, ids: np.ndarray, positions: np.ndarray, targets: np.ndarray) -> Text:
    """The text of a row. Of a target, in brackets, what stands in the text, and behind a colon what
    the model sees where that is neither `<mask>` nor the same."""
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
