"""A state that cannot fit is refused before anything is built."""

import json

import pytest
import torch
import yaml

from mlm.config import TrainConfig, as_dict, load
from mlm.errors import CONFIG, UserError
from mlm.training import rank
from mlm.training.memory import check_memory, rank_state_bytes
from parallel.layout import Layout


def config(dtype: str = "fp32", **model) -> TrainConfig:
    plain = as_dict(TrainConfig())
    plain["data"]["shards"] = "x"
    plain["train"]["dtype"] = dtype
    plain["model"] |= {"vocab_size": 250880, **model}
    return load(TrainConfig, plain)


XL = 3_482_741_760  # parameters, of which 250,880 x 2,560 are the embedding


@pytest.mark.parametrize(
    ("dtype", "layout", "bytes_"),
    [
        ("fp32", Layout(), 16 * XL),
        ("bf16", Layout(), 18 * XL),
        ("fp32", Layout(dp=4, zero=3), 4 * XL),
        ("bf16", Layout(tp=2, dp=4), (6 + 3) * XL // 2),
    ],
)
def test_rank_state_bytes_of_xl(dtype, layout, bytes_):
    assert rank_state_bytes(config(dtype), layout) == bytes_
    unknown = config(dtype, vocab_size=None)
    assert 0.7 * bytes_ < rank_state_bytes(unknown, layout) < bytes_


@pytest.mark.parametrize(
    ("layout", "limit", "ranks", "sentence"),
    [
        (Layout(), 25, 1, r"at least 55.7 GB per rank, and this machine has 25.0 GB; choose a "),
        (Layout(), 25, 1, r"smaller model, or divide it over at least 3 machines of this size by "),
        (Layout(tp=2), 25, 2, r"27.9 GB per rank, 55.7 GB for the 2 ranks here, and this machine"),
        (Layout(dp=2), 60, 2, r"choose parallel.zero=3, or a smaller model$"),
        (Layout(dp=2), 80, 2, r"choose parallel.zero=2, or a smaller model$"),
        (Layout(pp=2, dp=2), 60, 4, r"choose parallel.dp=1, or a smaller model$"),
    ],
)
def test_check_memory_says_what_would_fit(layout, limit, ranks, sentence):
    with pytest.raises(UserError, match=sentence):
        check_memory(config(), layout, limit * 10**9, ranks, "machine")


@pytest.mark.parametrize(
    ("layout", "ranks"), [(Layout(dp=2, zero=3), 2), (Layout(dp=1, pp=2), 2), (Layout(tp=4), 4)]
)
def test_check_memory_accepts_what_fits(layout, ranks):
    check_memory(config(), layout, 56 * 10**9, ranks, "machine")
    check_memory(config(), layout, None, 1000, "machine")


def test_check_memory_leaves_out_other_tasks():
    plain = as_dict(config())
    plain["task"]["kind"] = "line"
    check_memory(load(TrainConfig, plain), Layout(), 1, 1, "machine")


def test_rank_refuses_a_state_that_is_larger_than_its_gpu(tmp_path, monkeypatch):
    """Before it builds anything; the launcher does not know the GPUs of other machines."""
    monkeypatch.setattr(rank, "start_process_group", lambda device: torch.device("cuda", 1))
    monkeypatch.setattr(rank, "log_to_file", lambda run, number: None)
    asked = []
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (asked.append(device), (0, 80 * 10**9))[1]
    )
    settings = as_dict(config("bf16", hidden_size=4096, intermediate_size=16384))
    settings["model"]["num_hidden_layers"] = 48
    settings["parallel"]["dp"], settings["train"]["device"] = 1, "cuda"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert rank.main(str(path)) == CONFIG
    assert asked == [torch.device("cuda", 1)]
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["code"] == CONFIG
    assert outcome["sentence"].endswith(
        "at least 192.8 GB per rank, and this GPU has 80.0 GB; choose a smaller model, or divide "
        "it over at least 3 GPUs of this size by parallel.tp, parallel.pp, or parallel.dp with "
        "parallel.zero=3"
    )
