"""Every layout trains like one process: losses, gradient norms and weights after four steps.

The reference is a plain PyTorch loop over transformers' model, with logits on all positions, its
own cross entropy, `clip_grad_norm_` and AdamW: it uses none of `parallel/` and none of our model.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mlm import XLMRobertaXLForMaskedLM
from mlm.batch.micro_batch import IGNORED, MicroBatch
from mlm.batch.visibility import Visibility
from mlm.config import OptimConfig
from mlm.model.config import ModelConfig
from mlm.model.encoder import WORDS
from mlm.model.layer import EncoderLayer
from mlm.model.masked_lm import masked_lm_layers
from mlm.trained.opening import family_config
from mlm.training.optimizer import make_adamw
from parallel.engine.build import build_engine
from parallel.engine.deepspeed_adapter import buffers
from parallel.engine.interface import EngineSettings
from parallel.groups import make_grid
from parallel.keys import key
from parallel.layout import Layout
from parallel.pipeline.cut import cut
from tests.ranks import run_ranks
from tests.state_reading import whole_weights

pytestmark = pytest.mark.ranks

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=26,
    initializer_range=0.05,
)
OPTIM = OptimConfig(lr=1e-3, eps=1e-6, weight_decay=0.1, clip=0.5)
STEPS, GLOBAL, MICRO, SEQ_LEN, MASKED, SEED = 4, 8, 2, 24, 6, 11

LAYOUTS = [
    (1, 1, 1, 1),
    (2, 1, 1, 1),
    (4, 1, 1, 1),
    (1, 2, 1, 1),
    (1, 4, 1, 1),
    (1, 1, 2, 1),
    (1, 1, 2, 2),
    (1, 1, 2, 3),
    (2, 1, 2, 1),
    (2, 1, 2, 2),
    (2, 1, 2, 3),
    (2, 2, 1, 1),
    (1, 2, 2, 1),
    (2, 2, 2, 1),
]


def global_batch(step: int) -> list[MicroBatch]:
    """Micro-batches whose rows have from none to all of their masked positions in use."""
    generator = torch.Generator().manual_seed(1000 + step)
    batches = []
    for _ in range(GLOBAL // MICRO):
        ids = torch.randint(4, 120, (MICRO, SEQ_LEN), generator=generator)
        draws = torch.rand(MICRO, SEQ_LEN, generator=generator)
        positions = draws.argsort(dim=1)[:, :MASKED].sort(dim=1).values
        targets = ids.gather(1, positions)
        used = torch.randint(0, MASKED + 1, (MICRO, 1), generator=generator)
        unused = torch.arange(MASKED) >= used
        targets = targets.masked_fill(unused, IGNORED)
        positions = positions.masked_fill(unused, 0)
        seen = Visibility((MICRO, SEQ_LEN, SEQ_LEN))
        batches.append(MicroBatch(ids, seen, positions, targets, torch.arange(MICRO)))
    return batches


def initial_weights() -> dict[str, torch.Tensor]:
    """Those of the family's class, which other tests compare with transformers."""
    model = XLMRobertaXLForMaskedLM(family_config(CONFIG), seed=SEED)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def plain_loop() -> dict:
    """Four steps of transformers' model in a plain loop."""
    import transformers

    torch.manual_seed(0)
    ours_only = ("output_dropout", "pad_token_id", "bos_token_id", "eos_token_id")
    shape = {name: value for name, value in vars(CONFIG).items() if name not in ours_only}
    model = transformers.XLMRobertaXLForMaskedLM(transformers.XLMRobertaXLConfig(**shape))
    model.load_state_dict(initial_weights(), strict=False)
    model.tie_weights()
    model.train()
    named = list(model.named_parameters())
    bare = [p for n, p in named if n.endswith("bias") or "layernorm" in n.replace("_", "").lower()]
    weights = [p for _, p in named if not any(p is q for q in bare)]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": bare, "weight_decay": 0.0}],
        lr=OPTIM.lr,
        betas=OPTIM.betas,
        eps=OPTIM.eps,
    )
    losses, norms = [], []
    for step in range(STEPS):
        batches = global_batch(step)
        ids = torch.cat([b.input_ids for b in batches])
        positions = torch.cat([b.positions for b in batches])
        targets = torch.cat([b.targets for b in batches])
        labels = torch.full_like(ids, IGNORED)
        for row in range(len(ids)):
            for position, target in zip(positions[row], targets[row], strict=True):
                if target != IGNORED:
                    labels[row, position] = target
        logits = model(ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip)))
        optimizer.step()
        losses.append(loss.item())
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    return {"losses": losses, "norms": norms, "weights": state}


def train(
    degrees: tuple[int, int, int, int], config: ModelConfig = CONFIG, recompute: bool = False
) -> dict:
    """Four steps through our engine in one rank; full weights gathered by name."""
    layout = Layout(*degrees)
    grid = make_grid(layout)
    attention = "unfused" if config.attention_probs_dropout_prob else "auto"
    layers = masked_lm_layers(
        config, group=grid.tp, seed=SEED, attention=attention, seq_len=SEQ_LEN, masked=MASKED
    )
    accumulate = layout.grad_accum_steps(GLOBAL, MICRO)
    settings = EngineSettings(MICRO, accumulate, OPTIM.clip, recompute=recompute)
    engine = build_engine(layers, grid, lambda named: make_adamw(named, OPTIM), settings)
    losses, norms = [], []
    for step in range(STEPS):
        batches = global_batch(step)
        scale = accumulate * layout.dp / sum(batch.masked_tokens for batch in batches)
        mine = [
            replace(batch, loss_scale=scale, dropout_key=key(SEED, step, k))
            for k, batch in enumerate(batches)
            if k % layout.dp == grid.dp_rank
        ]
        result = engine.train_batch(mine, OPTIM.lr)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    weights = {}
    for name, parameter, weight in whole_weights(engine):
        shard = getattr(parameter, "shard", None)
        weights[name] = (None if shard is None else shard.dim, weight.clone())
    return {"losses": losses, "norms": norms, "weights": weights, "grid": layout.coordinates}


def joined(degrees: tuple[int, int, int, int], results: list[dict]) -> dict[str, torch.Tensor]:
    """Full tensors from the tensor-parallel slices of data rank 0; tied copies must agree."""
    layout, full = Layout(*degrees), {}
    for stage in range(layout.pp):
        ranks = [results[layout.rank(t, stage, 0)]["weights"] for t in range(layout.tp)]
        for name, (dim, first) in ranks[0].items():
            parts = [rank[name][1] for rank in ranks]
            tensor = first if dim is None else torch.cat(parts, dim)
            if dim is None:
                assert all(torch.equal(first, part) for part in parts), name
            if name in full:
                assert torch.equal(full[name], tensor), f"the copies of {name} differ"
            full[name] = tensor
    return full


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        difference = (found[name] - weight).norm()
        if name.endswith("key.bias"):
            # It has no true gradient (softmax ignores what all keys share); Adam scales noise up.
            assert (found[name] - weight).abs().max() <= 1e-2 * OPTIM.lr, name
        else:
            assert difference <= 1e-5 * weight.norm(), f"{name}: {difference / weight.norm():.2e}"


@pytest.fixture(scope="module")
def reference() -> dict:
    return run_ranks(1, plain_loop)[0]


@pytest.mark.parametrize("degrees", LAYOUTS, ids=lambda d: "-".join(map(str, d)))
def test_layout_equals_a_plain_loop(degrees, reference):
    results = run_ranks(degrees[0] * degrees[1] * degrees[2], train, degrees)
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(reference["norms"], rel=1e-5)
    assert_close(joined(degrees, results), reference["weights"])


@pytest.mark.parametrize(
    "degrees",
    [(1, 1, 2, 1), (1, 1, 2, 2), (2, 1, 2, 3), (1, 1, 4, 3)],
    ids=lambda d: "-".join(map(str, d)),
)
def test_layout_with_many_buckets_equals_a_plain_loop(degrees, reference, monkeypatch):
    """As models have them that are not as small as this one."""
    monkeypatch.setattr(buffers, "LEAST_BUCKET", 64)
    results = run_ranks(degrees[0] * degrees[1] * degrees[2], train, degrees)
    for result in results:
        assert result["losses"] == pytest.approx(reference["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(reference["norms"], rel=1e-5)
    assert_close(joined(degrees, results), reference["weights"])


@pytest.mark.parametrize("degrees", [(1, 4, 1, 1), (1, 3, 2, 1)], ids=["1-4-1-1", "1-3-2-1"])
def test_stage_of_embeddings_alone_trains_like_one_process(degrees):
    """It has no bias and no norm, so one parameter group fewer than the other stages."""
    config = replace(CONFIG, vocab_size=4096)
    layers = masked_lm_layers(config, seq_len=SEQ_LEN, masked=MASKED)
    first = cut(layers, degrees[1])[0][0]
    assert {layers[i].name for i in first} == {WORDS, "roberta.embeddings"}
    single = run_ranks(1, train, (1, 1, 1, 1), config)
    results = run_ranks(degrees[1] * degrees[2], train, degrees, config)
    for result in results:
        assert result["losses"] == pytest.approx(single[0]["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(single[0]["norms"], rel=1e-5)
    assert_close(joined(degrees, results), joined((1, 1, 1, 1), single))


def test_reference_clips_and_moves(reference):
    """Without clipping and without learning, the comparison would show nothing."""
    assert min(reference["norms"]) > OPTIM.clip
    moved = [
        (reference["weights"][name] - weight).norm() / weight.norm().clamp(min=1e-9)
        for name, weight in initial_weights().items()
    ]
    assert min(moved) > 1e-3


DROPOUT = replace(CONFIG, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
HIDDEN_DROPOUT = replace(CONFIG, hidden_dropout_prob=0.1)


@pytest.fixture(scope="module")
def with_dropout() -> dict[ModelConfig, list[dict]]:
    single = (1, 1, 1, 1)
    return {c: run_ranks(1, train, single, c) for c in (DROPOUT, HIDDEN_DROPOUT)}


@pytest.mark.parametrize(
    ("degrees", "config", "recompute"),
    [
        ((1, 1, 2, 1), DROPOUT, False),
        ((1, 2, 1, 1), DROPOUT, False),
        ((1, 1, 1, 1), DROPOUT, True),
        ((1, 2, 2, 1), DROPOUT, True),
        ((1, 1, 2, 3), DROPOUT, True),
        ((2, 1, 1, 1), HIDDEN_DROPOUT, False),
        ((2, 2, 1, 1), HIDDEN_DROPOUT, True),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_dropout_does_not_depend_on_the_layout(degrees, config, recompute, with_dropout, reference):
    single = with_dropout[config]
    results = run_ranks(degrees[0] * degrees[1] * degrees[2], train, degrees, config, recompute)
    for result in results:
        assert result["losses"] == pytest.approx(single[0]["losses"], rel=1e-5)
    assert_close(joined(degrees, results), joined((1, 1, 1, 1), single))
    assert abs(single[0]["losses"][0] - reference["losses"][0]) > 1e-4, "nothing was dropped"


def layer_calls(degrees: tuple[int, int, int, int], recompute: bool) -> int:
    """How often this rank runs an encoder layer in four steps."""
    calls, forward = [], EncoderLayer.forward

    def counted(self, x, batch):
        calls.append(self.index)
        return forward(self, x, batch)

    EncoderLayer.forward = counted  # pyright: ignore[reportAttributeAccessIssue]
    train(degrees, CONFIG, recompute)
    return len(calls)


@pytest.mark.parametrize("degrees", [(1, 2, 1, 1), (1, 1, 2, 2)], ids=["pipeline", "plain"])
def test_recomputation_runs_every_layer_twice(degrees):
    once = STEPS * CONFIG.num_hidden_layers * GLOBAL // MICRO // 2  # half of it on each rank
    assert run_ranks(2, layer_calls, degrees, False) == [once, once]
    assert run_ranks(2, layer_calls, degrees, True) == [2 * once, 2 * once]


def test_attention_dropout_differs_between_tensor_ranks():
    """Each rank draws its own masks for sharded activations, so tp 2 differs from tp 1."""
    only_attention = replace(CONFIG, attention_probs_dropout_prob=0.5)
    one = run_ranks(1, train, (1, 1, 1, 1), only_attention)
    two = run_ranks(2, train, (2, 1, 1, 1), only_attention)
    assert one[0]["losses"][0] != pytest.approx(two[0]["losses"][0], rel=1e-5)
