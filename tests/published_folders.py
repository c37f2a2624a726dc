"""Hugging Face folders of tiny random models, as transformers writes them, with our tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mlm.tokenizer.ids import MODEL_FILE
from mlm.tokenizer.tokenizer import Tokenizer
from mlm.trained.opening import open_trained
from tests.family.family_fixtures import randomise, their_model
from tests.text_fixtures import tokenizer

MASKED = "XLMRobertaXLForMaskedLM"
POSITIONS = "roberta.embeddings.position_embeddings.weight"
QUERY = "roberta.encoder.layer.1.attention.self.query.weight"
# Of the model in tests.training_fixtures.
TRAINED = {"num_hidden_layers": 4, "max_position_embeddings": 34, "type_vocab_size": 1}
HEADS = [
    "XLMRobertaXLModel",
    "XLMRobertaXLForMaskedLM",
    "XLMRobertaXLForCausalLM",
    "XLMRobertaXLForSequenceClassification",
    "XLMRobertaXLForMultipleChoice",
    "XLMRobertaXLForTokenClassification",
    "XLMRobertaXLForQuestionAnswering",
]
OF_HEAD: dict[str, dict[str, Any]] = {
    "XLMRobertaXLForCausalLM": {"is_decoder": True, "add_cross_attention": True},
    "XLMRobertaXLForSequenceClassification": {"id2label": {0: "calm", 1: "wild", 2: "dry"}},
    "XLMRobertaXLForTokenClassification": {"num_labels": 5, "hidden_act": "gelu_new"},
}


def model(head: str, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    """A random model of transformers."""
    assert tokenizer().padded_size == 512
    config = {"vocab_size": 512, "max_position_embeddings": 66} | OF_HEAD.get(head, {}) | config
    made = their_model(head, **config)
    randomise(made)
    return made.to(dtype).eval()


def folder_of(made: Any, folder: Path, shard: str = "5GB", with_tokenizer: bool = True) -> Path:
    """A folder as transformers saves it, its shards of at most `shard`."""
    made.save_pretrained(folder, max_shard_size=shard)
    if with_tokenizer:
        shutil.copy(tokenizer().model_path, folder / MODEL_FILE)
    return folder


def bin_folder(made: Any, folder: Path, shards: int = 1) -> Path:
    """The same as older versions save it: torch files, with the tied weights and a buffer."""
    folder_of(made, folder)
    (folder / "model.safetensors").unlink()
    state = made.state_dict() | {"roberta.embeddings.position_ids": torch.arange(66)[None]}
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    files = [f"pytorch_model-{n + 1:05d}-of-{shards:05d}.bin" for n in range(shards)]
    places = {name: files[number % shards] for number, name in enumerate(state)}
    for file in files:
        # Cloned: a view would take the whole storage with it.
        torch.save({n: state[n].clone() for n, at in places.items() if at == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def same_tensors(one: Path, other: Path) -> None:
    """Bit for bit, under the same names and in the same dtypes."""
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a trained model that has one."""
    found = open_trained(folder).tokenizer
    assert found is not None
    return found


def left_nothing(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def damaged(source: Path, change: Callable[[dict], dict]) -> None:
    """Rewrites a folder's weights as `change` gives them back."""
    save_file(change(tensors(source)), source / "model.safetensors", metadata={"format": "pt"})


def source_of(
    folder: Path,
    head: str = MASKED,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **shape: Any,
) -> Path:
    """The folder of a model that fits the config of `tests.training_fixtures`."""
    return folder_of(model(head, dtype, **(TRAINED | shape)), folder, shard)
