"""The model card of an exported model: what it is, how it was trained, how well it does."""

import json
import math
from typing import Any

from mlm.config import DataConfig
from mlm.console import counted
from mlm.family.heads import HEADS
from mlm.tracking.report import EVALUATION
from mlm.trained.opening import TrainedCheckpoint, TrainedModel
from mlm.weights.source import Weights


def model_card(trained: TrainedModel, name: str) -> str:
    """README.md of the Hugging Face folder `name`, in Markdown with its front matter.

    Of a run's checkpoint it tells of the training, too.
    """
    run = trained if isinstance(trained, TrainedCheckpoint) else None
    scored = _evaluation(run) if run else None
    languages = sorted(scored["eval_loss_by_language"]) if scored else []
    parts = [
        _front_matter(trained, languages),
        _opening(trained, name, languages),
        _loading(trained, name),
        *([_labels(trained)] if HEADS[trained.head].card.labels else []),
        *([_training(run), _scores(run, scored)] if run else []),
        _limits(run),
    ]
    return "\n\n".join(parts) + "\n"


def _evaluation(trained: TrainedCheckpoint) -> dict[str, Any] | None:
    """The run's last evaluation, if it is one of this checkpoint's step."""
    try:
        scored = json.loads((trained.run / EVALUATION).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return scored if scored.get("step") == trained.manifest.step else None


def _front_matter(trained: TrainedModel, languages: list[str]) -> str:
    listed = ["language:", *(f"- {json.dumps(language)}" for language in languages)]
    task = HEADS[trained.head].card.task
    lines = [
        *(listed if languages else []),
        "library_name: transformers",
        *([f"pipeline_tag: {task}"] if task else []),
        *(["mask_token: <mask>"] if task == "fill-mask" else []),
        "tags:",
        "- xlm-roberta-xl",
        "- multilingual",
    ]
    return "\n".join(["---", *lines, "---"])


def _opening(trained: TrainedModel, name: str, languages: list[str]) -> str:
    config, tokenizer = trained.config, trained.tokenizer
    of = f" of {counted(len(languages), 'language')}" if languages else ""
    by = "trained with polymlm" if isinstance(trained, TrainedCheckpoint) else "written by polymlm"
    rows = [
        ["Parameters", f"{parameters(trained.weights):,}"],
        ["Layers", config.num_hidden_layers],
        ["Hidden size", config.hidden_size],
        ["Attention heads", config.num_attention_heads],
        ["Feed-forward size", config.intermediate_size],
        *([["Ids of the tokenizer", f"{tokenizer.size:,}"]] if tokenizer else []),
        ["Rows of the embeddings, padded", f"{config.vocab_size:,}"],
        ["Positions", trained.max_tokens],
    ]
    if config.position_embedding_type != "absolute":
        rows.append(["Positions are", config.position_embedding_type])
    return (
        f"# {name}\n\n"
        f"{HEADS[trained.head].card.words}{of} with the architecture of XLM-RoBERTa-XL, {by}.\n\n"
        + _table(["Shape", ""], rows)
    )


def parameters(weights: Weights) -> int:
    """How many numbers the weights are, a tied one counted once."""
    return sum(math.prod(shape) for shape in weights.shapes.values())


def _loading(trained: TrainedModel, name: str) -> str:
    head, config = HEADS[trained.head], trained.config
    kind = head.card
    special = config.position_embedding_type != "absolute" or bool(config.pruned_heads)
    auto, library = kind.auto, "transformers"
    if special or auto is None:
        auto = trained.head
        library = "mlm"
    names = [auto, "AutoTokenizer"] if trained.tokenizer else [auto]
    lines = [f"model = {auto}.from_pretrained({name!r})"]
    if trained.tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({name!r})")
        if kind.call and not special:
            names.append("pipeline")
            lines += [
                f'run = pipeline("{kind.task}", model=model, tokenizer=tokenizer)',
                f"run({kind.call})",
            ]
        if kind.inputs:
            lines.append(f'outputs = model(**tokenizer({kind.inputs}, return_tensors="pt"))')
    dtypes = sorted({trained.weights.dtype_name(name) for name in trained.weights.shapes})
    said = f"The weights are {' and '.join(dtypes)}."
    if "lm_head.dense.weight" in trained.weights.shapes:
        said += " The decoder of the head is tied to the word embeddings and is not stored twice."
    if special:
        said += (
            " transformers 5 loads such a model too, but ignores its "
            "position_embedding_type or pruned_heads; polymlm and transformers 4.44 do not."
        )
    imports = [f"from {library} import {', '.join(names)}"]
    if kind.auto is None:  # a class from outside
        imports = [f"from {head.model.__module__} import {auto}"]
        imports += [f"from {library} import {name}" for name in names[1:]]
    code = "\n".join([*imports, "", *lines])
    return f"## How to load it\n\n```python\n{code}\n```\n\n{said}"


def _labels(trained: TrainedModel) -> str:
    rows = [[number, label] for number, label in sorted(trained.config.id2label.items())]
    return "## Labels\n\n" + _table(["Number", "Label"], rows)


def _training(trained: TrainedCheckpoint) -> str:
    settings, manifest = trained.settings, trained.manifest
    data, optim, train = settings.data, settings.optim, settings.train
    rows = [
        ["Steps", f"{manifest.step:,} of {train.steps:,}"],
        ["Sequences a step", train.global_batch_size],
        ["Tokens a sequence", data.seq_len],
        ["Tokens in all", f"{manifest.samples * data.seq_len:,}"],
        ["Masked", _masked(data)],
        ["Languages sampled by", f"size to the power of {data.alpha}"],
        ["Precision", train.dtype],
        ["Optimizer", f"AdamW, betas {optim.betas}, eps {optim.eps}, decay {optim.weight_decay}"],
        ["Learning rate", f"{optim.lr}, {settings.schedule.kind} schedule"],
        ["Seed", settings.seed],
    ]
    return "## Training\n\n" + _table(["Setting", ""], rows)


def _masked(data: DataConfig) -> str:
    kind = {"token": "single tokens", "word": "whole words", "span": "spans"}[data.masking]
    then = "".join(
        f", {ratio:.0%} from step {step:,} on" for step, ratio in data.mask_ratio_schedule
    )
    return f"{data.mask_ratio:.0%} of the tokens{then}; {kind}"


def _scores(trained: TrainedCheckpoint, scored: dict[str, Any] | None) -> str:
    title = "## Loss on held-out text\n\n"
    if scored is None:
        return title + f"Not measured at step {trained.manifest.step:,}."
    losses = scored["eval_loss_by_language"]
    entropies = scored.get("eval_unigram_entropy_by_language", {})
    rows = [
        ["all", _number(scored["eval_loss"]), _number(scored.get("eval_unigram_entropy"))],
        *([name, _number(losses[name]), _number(entropies.get(name))] for name in sorted(losses)),
    ]
    return (
        title
        + f"In nats per masked token, after {counted(trained.manifest.step, 'step')}; beside it "
        f"the entropy of the same text's unigrams, which is the loss of a model that knows how "
        f"frequent each token is and nothing else.\n\n"
        + _table(["Language", "Loss", "Unigram entropy"], rows)
    )


def _limits(run: TrainedCheckpoint | None) -> str:
    said = "## Limits\n\nThe model repeats what its text says, errors and prejudices included."
    if run is None or run.settings.data.seq_len >= run.max_tokens:
        return said
    return said + (
        f" It was trained on sequences of {run.settings.data.seq_len} tokens, to which the "
        f"tokenizer truncates; the positions after them, up to {run.max_tokens}, exist and are "
        f"untrained."
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
