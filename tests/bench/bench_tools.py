"""Our classes under other people's tools, beside transformers' own with equal weights.

    python tests/bench/bench_tools.py

Prints a table of largest differences in fp32: of gradients under DDP and FSDP (two processes over
gloo, all seven classes), of losses in transformers' Trainer, of a pipeline's scores, of the logits
of a LoRA adapter after steps and merged, and of the logits on padded inputs of a model that was
exported, traced or compiled from unpadded ones of another shape.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import mlm
from mlm.tokenizer.published_files import write_tokenizer
from tests.family.family_fixtures import pair, tokens
from tests.family.family_wrapped import CLASSES, MASKED, RANKS, WAYS, differences, inputs_of
from tests.family.test_trainer import PIPELINES, losses, trained
from tests.ranks import run_ranks
from tests.text_fixtures import tokenizer

EXAMPLE = {"input_ids": tokens(5, 9), "attention_mask": torch.ones(5, 9, dtype=torch.long)}


def row(tool: str, what: str, from_plain: float | None, from_theirs: float | None) -> None:
    shown = ["-" if each is None else f"{each:.1e}" for each in (from_plain, from_theirs)]
    print(f"| {tool} | {what} | {' | '.join(shown)} |", flush=True)


def wrapped() -> None:
    print("| tool | of | from ours without it | from transformers' class with it |")
    print("|---|---|---|---|")
    for way in WAYS:
        ranks = run_ranks(RANKS, differences, way, list(CLASSES))
        found = [each for rank in ranks for each in rank.values()]
        row(way, "gradients", *(max(each[place] for each in found) for place in range(2)))


def recorded() -> None:
    """Made from unpadded inputs of one shape, run on padded ones of another."""
    given = {name: inputs_of(MASKED)[name] for name in EXAMPLE}
    sizes: Any = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}

    def exported(model: Any) -> Any:
        shapes = dict.fromkeys(EXAMPLE, sizes)
        return torch.export.export(model, (), EXAMPLE, dynamic_shapes=shapes).module()

    def traced(model: Any) -> Any:
        return torch.jit.trace(model, example_kwarg_inputs=EXAMPLE, strict=False)

    def compiled(model: Any) -> Any:
        made = torch.compile(model, fullgraph=True, dynamic=True, backend="inductor")
        made(**EXAMPLE)
        return made

    tools = {
        "export, dynamic batch and length": exported,
        "jit.trace": traced,
        "compile, fullgraph, dynamic": compiled,
    }
    for name, make in tools.items():
        ours, theirs = pair(MASKED)
        with torch.no_grad():
            eager, expected = ours(**given)["logits"], theirs(**given)["logits"]
            found = make(ours)(**given)["logits"]
        row(name, "logits, padded", _gap(found, eager), _gap(found, expected))


def trainer(folder: Path) -> None:
    mine, others = (
        trained(model, folder / name)
        for name, model in zip(("ours", "theirs"), pair(MASKED), strict=True)
    )
    row("Trainer, 4 steps", "losses", None, _gap(losses(mine), losses(others)))
    whole = trained(pair(MASKED)[0], folder / "whole", 6)
    resumed = trained(pair(MASKED)[0], folder / "ours", 6, resume=True)
    row("Trainer, resumed", "losses", _gap(losses(resumed), losses(whole)), None)


def adapter() -> None:
    ids, found = tokens(), []
    config = peft.LoraConfig(r=4, target_modules="all-linear")
    for model in pair(MASKED):
        torch.manual_seed(3)
        lora: Any = peft.get_peft_model(model, config)
        optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            lora(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        with torch.no_grad():
            unmerged = lora.eval()(input_ids=ids).logits
            found.append((unmerged, lora.merge_and_unload()(input_ids=ids).logits))
    row("peft, all-linear", "logits, 3 steps", None, _gap(found[0][0], found[1][0]))
    row("peft, merged", "logits", _gap(found[0][1], found[0][0]), _gap(found[0][1], found[1][1]))


def pipeline(folder: Path) -> None:
    folder.mkdir()
    write_tokenizer(tokenizer(), 128, folder)
    cls_name, texts = PIPELINES["fill-mask"]
    shape: Any = {"vocab_size": tokenizer().padded_size, "max_position_embeddings": 130}
    made: Any = transformers.pipeline

    def scores(model: Any, words: Any) -> torch.Tensor:
        found = made("fill-mask", model=model, tokenizer=words)(texts)
        return torch.tensor([each["score"] for text in found for each in text])

    gaps = []
    for kind in (transformers.AutoTokenizer, mlm.AutoTokenizer):
        words = kind.from_pretrained(folder)
        ours, theirs = (scores(model, words) for model in pair(cls_name, **shape))
        gaps.append(_gap(ours, theirs))
    row("pipeline, fill-mask, both tokenizers", "scores", None, max(gaps))


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    wrapped()
    with tempfile.TemporaryDirectory() as made:
        trainer(Path(made) / "trainer")
        pipeline(Path(made) / "words")
    adapter()
    recorded()
