"""The model card of an exported model: what it is, how it was trained, how well it does."""

import json
from typing import Any

from mlm.report import EVALUATION
from mlm.trained import Checkpoint


def model_card(trained: Checkpoint, name: str) -> str:
    """README.md of the Hugging Face folder `name`, in Markdown with its front matter."""
    scored = _evaluation(trained)
    languages = sorted(scored["eval_loss_by_language"]) if scored else []
    parts = [
        _front_matter(languages),
        _opening(trained, name, languages),
        _loading(name),
        _training(trained),
        _scores(trained, scored),
        _limits(trained),
    ]
    return "\n\n".join(parts) + "\n"


def _evaluation(trained: Checkpoint) -> dict[str, Any] | None:
    """The run's last evaluation, if it is one of this checkpoint's step."""
    try:
        scored = json.loads((trained.run / EVALUATION).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return scored if scored.get("step") == trained.manifest.step else None


def _front_matter(languages: list[str]) -> str:
    listed = ["language:", *(f"- {json.dumps(language)}" for language in languages)]
    lines = [
        *(listed if languages else []),
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "mask_token: <mask>",
        "tags:",
        "- xlm-roberta-xl",
        "- multilingual",
    ]
    return "\n".join(["---", *lines, "---"])


def _opening(trained: Checkpoint, name: str, languages: list[str]) -> str:
    config = trained.config
    of = f" of {len(languages)} languages" if languages else ""
    return (
        f"# {name}\n\n"
        f"A masked language model{of} with the architecture of XLM-RoBERTa-XL, trained with "
        f"polymlm.\n\n"
        + _table(
            ["Shape", ""],
            [
                ["Parameters", f"{config.parameters():,}"],
                ["Layers", config.num_hidden_layers],
                ["Hidden size", config.hidden_size],
                ["Attention heads", config.num_attention_heads],
                ["Feed-forward size", config.intermediate_size],
                ["Ids of the tokenizer", f"{trained.tokenizer.size:,}"],
                ["Rows of the embeddings, padded", f"{config.padded_vocab_size():,}"],
                ["Positions", config.max_tokens],
            ],
        )
    )


def _loading(name: str) -> str:
    return (
        "## How to load it\n\n"
        "```python\n"
        "from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline\n\n"
        f"model = AutoModelForMaskedLM.from_pretrained({name!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
        'fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)\n'
        'fill("The <mask> is a river.")\n'
        "```\n\n"
        "The weights are fp32. The decoder of the head is tied to the word embeddings and is not "
        "stored twice."
    )


def _training(trained: Checkpoint) -> str:
    settings, manifest = trained.settings, trained.manifest
    data, optim, train = settings.data, settings.optim, settings.train
    rows = [
        ["Steps", f"{manifest.step:,} of {train.steps:,}"],
        ["Sequences a step", train.global_batch_size],
        ["Tokens a sequence", data.seq_len],
        ["Tokens in all", f"{manifest.samples * data.seq_len:,}"],
        ["Masked", f"{data.mask_ratio:.0%} of the tokens"],
        ["Languages sampled by", f"size to the power of {data.alpha}"],
        ["Numbers", train.dtype],
        ["Optimizer", f"AdamW, betas {optim.betas}, eps {optim.eps}, decay {optim.weight_decay}"],
        ["Learning rate", f"{optim.lr}, {settings.schedule.kind} schedule"],
        ["Seed", settings.seed],
    ]
    return "## Training\n\n" + _table(["Setting", ""], rows)


def _scores(trained: Checkpoint, scored: dict[str, Any] | None) -> str:
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
        + f"In nats per masked token, after {trained.manifest.step:,} steps; beside it the entropy "
        f"of the same text's unigrams, which is the loss of a model that knows how frequent each "
        f"token is and nothing else.\n\n" + _table(["Language", "Loss", "Unigram entropy"], rows)
    )


def _limits(trained: Checkpoint) -> str:
    seq_len, most = trained.settings.data.seq_len, trained.config.max_tokens
    shorter = (
        f" It was trained on sequences of {seq_len} tokens, to which the tokenizer truncates; the "
        f"positions after them, up to {most}, exist and are untrained."
    )
    return "## Limits\n\nThe model repeats what its text says, errors and prejudices included." + (
        shorter if seq_len < most else ""
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
