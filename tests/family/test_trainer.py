"""transformers' Trainer, pipelines and peft on our classes, against transformers' own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import mlm
from mlm.tokenizer.published_files import write_tokenizer
from tests.family.family_fixtures import TINY, pair, same, tokens
from tests.family.family_wrapped import CLASSES, MASKED
from tests.text_fixtures import tokenizer as trained_tokenizer

ROWS: Any = [{"input_ids": row, "labels": row} for row in tokens(16)]
WEIGHTS = 1e-4  # the largest difference of a weight after a few steps


def trained(model: Any, folder: Path, steps: int = 4, resume: bool = False, **given: Any) -> Any:
    """A Trainer after `steps` steps of two rows, saved at each second one."""
    options: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = transformers.TrainingArguments(output_dir=str(folder), **(options | given))
    trainer = transformers.Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:4])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Any) -> Tensor:
    history = trainer.state.log_history
    return torch.tensor([row.get("loss", row.get("eval_loss", 0.0)) for row in history])


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for name, weight in weights(theirs).items():
        if not name.endswith("key.bias"):  # it has no true gradient: Adam amplifies its noise
            same(ours.get_parameter(name).detach(), weight, WEIGHTS, name)


@pytest.mark.parametrize("given", [{}, {"gradient_checkpointing": True}])
def test_trainer_trains_saves_and_resumes_as_with_transformers(tmp_path, given):
    ours, theirs = pair(MASKED)
    mine, others = (
        trained(model, tmp_path / name, **given)
        for name, model in (("ours", ours), ("theirs", theirs))
    )
    torch.testing.assert_close(losses(mine), losses(others), rtol=0, atol=1e-5)
    assert mine.state.best_model_checkpoint.endswith("checkpoint-4")
    last = tmp_path / "ours/checkpoint-4"
    assert {"config.json", "model.safetensors"} <= {file.name for file in last.iterdir()}
    assert json.loads((last / "config.json").read_text())["architectures"] == [MASKED]
    saved = mlm.XLMRobertaXLForMaskedLM.from_pretrained(last)
    theirs_of_ours = transformers.AutoModelForMaskedLM.from_pretrained(last)
    for one in (saved, theirs_of_ours):
        same_weights(one, mine.model)
    resumed = trained(pair(MASKED)[0], tmp_path / "ours", 6, resume=True, **given)
    whole = trained(pair(MASKED)[0], tmp_path / "whole", 6, **given)
    assert torch.equal(losses(resumed), losses(whole))
    left = {folder.name for folder in (tmp_path / "ours").iterdir()}
    assert left == {"checkpoint-4", "checkpoint-6"}
    tied = resumed.model.lm_head.decoder.weight
    assert tied is resumed.model.roberta.embeddings.word_embeddings.weight
    resumed.save_model(tmp_path / "final")
    same_weights(mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "final"), resumed.model)


def test_save_pretrained_writes_the_state_that_is_given(tmp_path):
    ours = pair(MASKED)[0]
    state = {name: tensor + 1 for name, tensor in ours.state_dict().items()}
    ours.save_pretrained(tmp_path / "given", state_dict=state)
    read = mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "given")
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, state[name]), name


TARGETS = [
    ["query", "value"],
    "all-linear",
    pytest.param(["dense"], marks=pytest.mark.slow),
    pytest.param(["word_embeddings", "key"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_lora_trains_saves_loads_and_merges_as_with_transformers(tmp_path, targets):
    config = peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.0, init_lora_weights=True)
    ids = tokens()
    logits, adapted, merged = [], [], []
    for name, model in zip(("ours", "theirs"), pair(MASKED), strict=True):
        torch.manual_seed(3)
        wrapped: Any = peft.get_peft_model(model, config)
        adapted.append({name for name, p in wrapped.named_parameters() if p.requires_grad})
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
        wrapped.train()
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        wrapped.eval().save_pretrained(tmp_path / name, save_embedding_layers=False)
        with torch.no_grad():
            logits.append(wrapped(input_ids=ids).logits)
            fresh = pair(MASKED)[0]
            loaded: Any = peft.PeftModel.from_pretrained(fresh, tmp_path / name).eval()
            same(loaded(input_ids=ids).logits, logits[-1])
            merged.append(loaded.merge_and_unload()(input_ids=ids).logits)
    assert adapted[0] == adapted[1]
    same(logits[0], logits[1], 1e-4)
    same(merged[0], merged[1], 1e-4)
    if "word_embeddings" not in targets:  # merged, the decoder has the adapter of its tied weight
        same(merged[0], logits[0])
    assert (logits[0] - pair(MASKED)[0](ids).logits).abs().max() > 0.1


def test_trainer_trains_an_adapter(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["query", "value"])
    made = []
    for name, model in zip(("ours", "theirs"), pair(MASKED), strict=True):
        torch.manual_seed(3)
        made.append(trained(peft.get_peft_model(model, config), tmp_path / name))
    torch.testing.assert_close(losses(made[0]), losses(made[1]), rtol=0, atol=1e-5)
    assert (tmp_path / "ours/checkpoint-4/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("cls_name", CLASSES)
def test_unsharded_layers_are_those_of_pytorch(cls_name):
    ours, theirs = pair(cls_name, **CLASSES[cls_name])
    for kind in (nn.Linear, nn.Embedding, nn.LayerNorm):
        found, expected = (
            {name for name, module in model.named_modules() if isinstance(module, kind)}
            for model in (ours, theirs)
        )
        assert found == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tokenizer."""
    made = tmp_path_factory.mktemp("words")
    write_tokenizer(trained_tokenizer(), 128, made)
    return made


PIPELINES = {
    "fill-mask": (MASKED, ["The <mask> is wide.", "A <mask>."]),
    "text-classification": ("XLMRobertaXLForSequenceClassification", ["The river.", "Wide."]),
    "token-classification": ("XLMRobertaXLForTokenClassification", ["The river is wide."]),
    "feature-extraction": ("XLMRobertaXLModel", ["The river is wide."]),
}


@pytest.mark.parametrize("task", PIPELINES)
def test_pipelines_give_what_they_give_of_transformers(task, folder):
    cls_name, texts = PIPELINES[task]
    shape: dict[str, Any] = {
        "vocab_size": trained_tokenizer().padded_size,
        "max_position_embeddings": 130,
        "type_vocab_size": 1,
    }
    ours, theirs = pair(cls_name, **shape)
    made: Any = transformers.pipeline
    for tokenizer in (transformers.AutoTokenizer, mlm.AutoTokenizer):
        words = tokenizer.from_pretrained(folder)
        expected = made(task, model=theirs, tokenizer=words)(texts)
        equal(made(task, model=ours, tokenizer=words)(texts), expected)
        equal(made(task, model=ours, tokenizer=words, batch_size=2)(texts), expected)


def equal(found: Any, expected: Any) -> None:
    """Nested lists and dicts with the same words and about the same numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            equal(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            equal(one, other)
    elif isinstance(expected, str) or expected is None:
        assert found == expected
    else:
        assert float(found) == pytest.approx(float(expected), abs=2e-5)


def run(code: str) -> str:
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_models_are_those_of_transformers_whichever_is_imported_first():
    ours = f"import mlm; made = mlm.{MASKED}(mlm.XLMRobertaXLConfig(**{TINY}))"
    theirs = "import transformers"
    asked = "print(isinstance(made, transformers.PreTrainedModel))"
    assert run(f"{ours}; {theirs}; {asked}") == "True"
    assert run(f"{theirs}; {ours}; {asked}") == "True"


def test_models_work_without_transformers():
    code = f"""
import sys
sys.modules["transformers"] = None  # its import fails
import copy, pickle, torch, mlm
made = mlm.{MASKED}(mlm.XLMRobertaXLConfig(**{TINY})).eval()
out = made(torch.tensor([[0, 5, 2]]), labels=torch.tensor([[0, 5, 2]]))
out.loss.backward()
assert isinstance(out, dict) and list(out) == ["loss", "logits"]
assert not [name for name in sys.modules if name.startswith("transformers.")]
print(mlm.__version__)
"""
    assert run(code) == mlm.__version__


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert mlm.__version__ == version("polymlm")
    assert "__version__" in dir(mlm)
