"""Folders read into tensor-parallel ranks and pipeline stages, and written from them."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import mlm
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.stages import stage_layers
from mlm.model.initial import initialise
from mlm.weights.load import full_shapes, weights_setter
from mlm.weights.source import open_weights
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.pipeline.cut import balance
from parallel.sharding import shard_of, slice_of
from tests.family.family_fixtures import our_model, tokens
from tests.family.test_weights import equal, tensors
from tests.memory import added_by
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

MASKED = "XLMRobertaXLForMaskedLM"
SHARD = 30_000  # bytes
_kept = TemporaryDirectory(prefix="polymlm-")


@cache
def folder(dtype: torch.dtype = torch.float32) -> Path:
    """A masked language model in several files."""
    path = Path(_kept.name) / str(dtype)
    our_model(MASKED, init={"seed": 1}).to(dtype).save_pretrained(path, max_shard_size=SHARD)
    return path


def read_and_write(path: Path, out: Path) -> dict:
    """Reads a folder into two ranks, and writes it again from them; what a rank found."""
    group = make_grid(Layout(tp=2, pp=1, dp=1)).tp
    ours = mlm.XLMRobertaXLForMaskedLM.from_pretrained(path, group=group, dtype="auto")
    held = tensors(path)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, slice_of(held[name], shard_of(parameter))), name
        assert hasattr(parameter, "tensor_model_parallel") == (shard_of(parameter) is not None)
    assert ours.lm_head.decoder.weight is ours.get_input_embeddings().weight
    ours.save_pretrained(out, max_shard_size=SHARD)
    messages = []
    for target in (out, out / "config.json" / "below"):
        try:
            ours.save_pretrained(target, max_shard_size=SHARD)
        except ValueError as error:
            messages.append(str(error))
    with torch.no_grad():
        before = ours(tokens()).logits
    ours.prune_heads({0: [0, 3]})
    try:
        ours.resize_token_embeddings(131)
    except ValueError as error:
        messages.append(str(error))
    ours.resize_token_embeddings(140)
    ours.save_pretrained(out.with_name("smaller"))
    with torch.no_grad():
        after = ours(tokens()).logits
    torch.manual_seed(
        torch.distributed.get_rank()
    )  # a new head is nevertheless the same on all ranks
    headed = mlm.XLMRobertaXLForTokenClassification.from_pretrained(path, group=group)
    return {
        "messages": messages,
        "before": before,
        "after": after,
        "count": ours.num_parameters(),
        "head": headed.classifier.weight.detach(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_parallel_ranks_load_and_save(dtype, tmp_path):
    path, out = folder(dtype), tmp_path / "out"
    found = run_ranks(2, read_and_write, path, out)
    assert equal(tensors(out), tensors(path))
    names = {each.name for each in path.iterdir()}
    assert {each.name for each in out.iterdir()} == names
    for name in names - {each.name for each in path.glob("*.safetensors")}:
        assert json.loads((out / name).read_text()) == json.loads((path / name).read_text())
    for rank in found:
        written, uneven = rank["messages"]
        assert "below cannot be written: File exists; free some space there" in written
        assert "new_num_tokens=131 is not a multiple of the 2 ranks that split the emb" in uneven
    whole = mlm.XLMRobertaXLForMaskedLM.from_pretrained(path, dtype="auto")
    close = 2e-5 if dtype == torch.float32 else 0.2
    with torch.no_grad():
        expected = whole(tokens()).logits
        assert torch.allclose(found[0]["before"].float(), expected.float(), atol=close)
        smaller = mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path / "smaller", dtype="auto")
        assert smaller.config.vocab_size == 140
        expected = smaller(tokens()).logits
        assert torch.allclose(found[1]["after"].float(), expected.float(), atol=close)
    assert found[0]["count"] == smaller.num_parameters()
    assert torch.equal(found[0]["head"], found[1]["head"])
    whole.prune_heads({0: [0, 3]})
    whole.resize_token_embeddings(140)
    mine = whole.state_dict()
    for name, tensor in smaller.state_dict().items():
        assert torch.allclose(tensor.float(), mine[name].float(), atol=1e-6), name


def filled(path: Path, layout: Layout, kind: str, **changes) -> dict[str, torch.Tensor]:
    """The parameters of a stage of this rank, built from a folder, by their published names."""
    grid = make_grid(layout)
    config = XLMRobertaXLConfig.from_pretrained(path, **changes)
    shape = config.shape()
    with torch.device("meta"):
        expected = full_shapes(getattr(mlm, kind)(config))
    set_weights = weights_setter(
        open_weights(path), expected, lambda module, name: initialise(module, name, shape, 7)
    )
    layers = stage_layers(getattr(mlm, kind), config, group=grid.tp, set_weights=set_weights)
    bounds = balance(layers, layout.pp)
    found = {}
    for layer in layers[bounds[grid.pp_rank] : bounds[grid.pp_rank + 1]]:
        if f"{layer.name}.weight" not in found:  # a tied one, which a stage builds once
            found |= dict(layer.build().named_parameters(prefix=layer.name))
    return found


def stage_is_a_part(path: Path, layout: Layout, kind: str, changes: dict) -> list[str]:
    found = filled(path, layout, kind, **changes)
    held = tensors(path)
    for name, parameter in found.items():
        if name in held:
            assert torch.equal(parameter, slice_of(held[name], shard_of(parameter))), name
    return list(found)


@pytest.mark.parametrize("kind", [MASKED, "XLMRobertaXLForTokenClassification"])
def test_stages_read_their_weights(kind):
    names = run_ranks(4, stage_is_a_part, folder(), Layout(tp=2, pp=2, dp=1), kind, {})
    whole = dict(our_model(kind).named_parameters())
    assert set().union(*names) == set(whole)


def stage_of_another_shape(path: Path) -> str:
    with pytest.raises(ValueError, match="give a config") as found:
        filled(path, Layout(tp=2, pp=1, dp=1), MASKED, intermediate_size=128)
    return str(found.value)


def test_stages_of_another_shape_are_refused_on_every_rank():
    for said in run_ranks(2, stage_of_another_shape, folder()):
        assert "intermediate.dense.weight with the shape (64, 32), and the model's is (128" in said


# Peak memory.

LARGE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 14,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
}
WORDS = 8192 * 512 * 4  # bytes of its largest tensor
SMALL = 6 << 20  # bytes for what Python and torch need beside tensors


@cache
def large_folder() -> Path:
    path = Path(_kept.name) / "large"
    config = XLMRobertaXLConfig(**LARGE)
    mlm.XLMRobertaXLForMaskedLM(config, seed=1).save_pretrained(path, max_shard_size="45MB")
    assert len(list(path.glob("*.safetensors"))) == 5
    return path


def peak_of(read) -> tuple[int, int]:
    """(bytes that `read` added at its peak, bytes of the parameters that it gave)."""
    added, parameters = added_by(read)
    return added, sum(each.numel() * each.element_size() for each in parameters)


def peak_of_stages(path: Path, layout: Layout) -> tuple[int, int]:
    filled(folder(), layout, MASKED)  # what is imported and cached the first time
    return peak_of(lambda: list(filled(path, layout, MASKED).values()))


def peak_of_ranks(path: Path, dtype: str) -> tuple[int, int]:
    group = make_grid(Layout(tp=2, pp=1, dp=1)).tp
    kind = mlm.XLMRobertaXLForMaskedLM
    kind.from_pretrained(folder(), group=group)
    return peak_of(lambda: list(kind.from_pretrained(path, group=group, dtype=dtype).parameters()))


def test_stages_hold_their_weights_and_one_tensor():
    folder()
    whole = sum(tensor.numel() * 4 for tensor in tensors(large_folder()).values())
    assert whole > 190e6
    found = run_ranks(4, peak_of_stages, large_folder(), Layout(tp=2, pp=2, dp=1))
    for added, own in found:
        assert whole / 5 < own < whole / 3
        assert own - SMALL <= added <= own + WORDS + SMALL, (added, own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensor_parallel_ranks_hold_their_weights_and_one_tensor(dtype):
    folder()
    for added, own in run_ranks(2, peak_of_ranks, large_folder(), dtype):
        assert own - SMALL <= added <= own + WORDS + SMALL, (added, own)
