"""Masked language modelling on token shards: the task of `mlm train`."""

from collections.abc import Sequence
from typing import Any

import torch

from mlm.batch.micro_batch import MicroBatch
from mlm.config import TrainConfig
from mlm.console import counted
from mlm.data.audit.exposure import Exposure
from mlm.data.batches.batches import HeldOutBatches
from mlm.data.batches.entropy import unigram_entropy
from mlm.data.reading.remote import open_index
from mlm.model.encoder import SetWeights
from mlm.model.flops import training_flops_per_token
from mlm.model.kernels import KERNELS
from mlm.model.masked_lm import masked_lm_layers
from mlm.plugins import entry
from mlm.tasks.pretraining.batches import held_out_reader, training_batches
from mlm.tasks.pretraining.losses import LossTally, few_tokens
from mlm.tasks.task import OnProgress, Task, evaluated
from mlm.tracking.scores import Scores
from parallel.engine.interface import Engine
from parallel.groups import Group
from parallel.pipeline.stages import StageLayer


class Pretraining(Task):
    """Raises `UserError` for data that does not fit the settings."""

    def __init__(self, config: TrainConfig) -> None:
        data, train = config.data, config.train
        assert data.shards is not None, "the launcher has resolved data.shards"
        if train.attention != "auto":
            entry(KERNELS, "train.attention", train.attention)
        self.config = config
        self.index = open_index(data.shards, data.cache)
        self.data_hash = self.index.hash
        self.training = training_batches(config, self.index, train.micro_batch_size)
        self.heldout = HeldOutBatches(
            held_out_reader(config, self.training.reader),
            self.training.masking,
            data.seq_len,
            train.micro_batch_size,
            config.eval.blocks_per_language,
            data.isolate_documents,
        )
        self.max_targets = self.training.masking.max_targets(data.seq_len)
        self.micro_batches = self.training.micro_batches
        self.tokens_per_step = train.global_batch_size * data.seq_len
        self.flops_per_token = training_flops_per_token(
            config.model, data.seq_len, self.max_targets
        )
        self._entropy: tuple[float, dict[str, float]] | None = None

    def layers(self, group: Group, set_weights: SetWeights | None) -> list[StageLayer]:
        return masked_lm_layers(
            self.config.model,
            group=group,
            seed=self.config.seed,
            attention=self.config.train.attention,
            seq_len=self.config.data.seq_len,
            masked=self.max_targets,
            set_weights=set_weights,
        )

    def batches(self, step: int, numbers: Sequence[int]) -> list[MicroBatch]:
        return self.training.of_step(step, numbers)

    def normaliser(self, batches: Sequence[MicroBatch]) -> int:
        """Masked tokens."""
        return sum(batch.masked_tokens for batch in batches)

    def tally(self, device: torch.device) -> LossTally:
        return LossTally(self.index.languages, device)

    def evaluate(self, engine: Engine, on_progress: OnProgress) -> Scores:
        """The loss on held-out text, beside the entropy of the same tokens as unigrams."""
        tally = LossTally(self.heldout.reader.index.languages, engine.device)
        batches = evaluated(engine, len(self.heldout), self.heldout.micro_batch, on_progress)
        for batch, outputs in batches:
            if engine.grid.is_last_stage:
                tally.add_losses(batch, outputs["losses"])
        losses = tally.losses(engine)
        entropy, by_language = self.entropy
        return Scores(
            losses.mean,
            {
                "eval_loss": losses.mean,
                "eval_unigram_entropy": entropy,
                "eval_loss_by_language": losses.by_language,
            },
            f"held-out loss {losses.mean:.4f} nats a token; the unigram entropy of these tokens is "
            f"{entropy:.4f}" + few_tokens(losses),
            {
                "eval_unigram_entropy_by_language": by_language,
                "eval_tokens_by_language": dict(zip(losses.languages, losses.counts, strict=True)),
            },
        )

    @property
    def entropy(self) -> tuple[float, dict[str, float]]:
        """Of the held-out tokens, overall and by language, in nats."""
        if self._entropy is None:
            self._entropy = unigram_entropy(self.heldout)
        return self._entropy

    def progress(self, steps: int, skipped: set[int]) -> dict[str, Any]:
        """Samples of bad shards count as seen."""
        batch = self.config.train.global_batch_size
        seen = Exposure(self.training.order, self.training.reader, batch, steps, skipped)
        return seen.by_language()

    def skip_shard(self, shard: str, step: int) -> None:
        self.training.reader.skip_shard(shard, step)

    def summary(self) -> str:
        languages = counted(len(self.index.languages), "language")
        return f"{languages}, {counted(sum(self.index.train_tokens), 'token')}"
