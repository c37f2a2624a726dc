"""Models that are resized, pruned and counted, against transformers and against a plain formula."""

import pytest
import torch

import mlm
from tests.family.family_fixtures import VOCAB, our_model, pair, same, tokens

MASKED = "XLMRobertaXLForMaskedLM"


@pytest.mark.parametrize("rows", [VOCAB + 24, VOCAB - 28])
def test_resize_token_embeddings_equals_transformers(rows):
    ours, theirs = pair(MASKED)
    made = ours.resize_token_embeddings(rows)
    theirs.resize_token_embeddings(rows)
    assert made is ours.get_input_embeddings()
    assert ours.config.vocab_size == theirs.config.vocab_size == rows
    mine, state = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == state.keys()
    for name, tensor in state.items():
        same(mine[name], tensor, 1e-4, name)  # theirs draws new rows closely around the mean
    assert ours.lm_head.decoder.weight is made.weight
    assert ours.lm_head.decoder.bias is ours.lm_head.bias
    theirs.load_state_dict(mine)
    ids = tokens() % rows
    same(ours(ids).logits, theirs(ids).logits)
    ours(ids, labels=ids).loss.backward()
    assert made.weight.grad[-1].any()


def test_resize_token_embeddings_adds_the_mean_or_draws():
    ours = our_model(MASKED)
    before = ours.get_input_embeddings().weight.detach().clone()
    assert ours.resize_token_embeddings() is ours.get_input_embeddings()
    ours.resize_token_embeddings(VOCAB + 1, pad_to_multiple_of=64)
    words = ours.get_input_embeddings().weight
    assert words.shape == (192, 32)
    assert torch.equal(words[:VOCAB], before)
    assert torch.allclose(words[VOCAB:], before.mean(dim=0), atol=1e-6)
    ours.resize_token_embeddings(1192, mean_resizing=False)
    drawn = ours.get_input_embeddings().weight[192:]
    assert 0.19 < drawn.std() < 0.21  # initializer_range
    assert abs(drawn.mean()) < 0.01
    ours.resize_token_embeddings(pad_to_multiple_of=128)
    assert ours.config.vocab_size == 1280
    bare = our_model("XLMRobertaXLModel")
    bare.resize_token_embeddings(130)
    assert bare(torch.tensor([[129]])).last_hidden_state.shape == (1, 1, 32)
    for given, said in (
        ((0,), "new_num_tokens=0 is not a whole number above 0; give one"),
        ((1,), "new_num_tokens=1 leaves no row to pad_token_id=1; give more"),
        ((None, 1.5), r"pad_to_multiple_of=1.5 is not a whole number above 0; give one"),
    ):
        with pytest.raises(ValueError, match=said):
            ours.resize_token_embeddings(*given)


def test_set_input_embeddings_replaces_the_table():
    ours = our_model(MASKED)
    table = torch.nn.Embedding(VOCAB, 32, padding_idx=1)
    ours.set_input_embeddings(table)
    assert ours.get_output_embeddings().weight is table.weight
    assert ours.base_model.get_input_embeddings() is table
    with pytest.raises(ValueError, match=r"shape \(9, 32\) and .*; use resize_token_embeddings"):
        ours.set_input_embeddings(torch.nn.Embedding(9, 32))
    assert our_model("XLMRobertaXLForTokenClassification").get_output_embeddings() is None


def test_set_output_embeddings_replaces_the_decoder():
    ours, other = our_model(MASKED).eval(), torch.nn.Linear(32, VOCAB)
    ours.set_output_embeddings(other)
    assert ours.get_input_embeddings().weight is ours.get_output_embeddings().weight is other.weight
    assert ours.lm_head.bias is ours.lm_head.decoder.bias is other.bias
    with torch.no_grad():
        out = ours(tokens(), output_hidden_states=True)
        same(out.logits, other(ours.lm_head.features(out.hidden_states[-1])))
    with pytest.raises(ValueError, match=r"shape \(9, 32\) and the old one \(128, 32\)"):
        ours.set_output_embeddings(torch.nn.Linear(32, 9))
    with pytest.raises(ValueError, match="the old one none"):
        our_model("XLMRobertaXLForTokenClassification").set_output_embeddings(other)


def test_prune_heads_equals_a_head_mask(tmp_path):
    ours = our_model(MASKED)
    ids, mask = tokens(), torch.ones(3, 4)
    mask[0, 1] = mask[2, 0] = mask[2, 3] = 0
    expected = ours.eval()(ids, head_mask=mask).logits
    ours.prune_heads({0: [1], 2: [3]})
    ours.prune_heads({2: [0, 3]})
    assert ours.config.pruned_heads == {0: [1], 2: [0, 3]}
    assert ours.roberta.encoder.layer[2].attention.self.query.weight.shape == (16, 32)
    same(ours(ids).logits, expected)
    ours.save_pretrained(tmp_path)
    again = mlm.XLMRobertaXLForMaskedLM.from_pretrained(tmp_path)
    assert again.config.pruned_heads == {0: [1], 2: [0, 3]}
    same(again(ids).logits, expected)
    again.prune_heads({1: {2}})
    fresh = mlm.XLMRobertaXLForMaskedLM(again.config)
    assert {name: each.shape for name, each in fresh.state_dict().items()} == {
        name: each.shape for name, each in again.state_dict().items()
    }
    for heads, said in (
        ({3: [0]}, "layer 3 is not one of the 3 layers, which count from 0; choose one of them"),
        ({0: [4]}, "head 4 of layer 0 is not one of the 4 heads, which count from 0; choose one"),
    ):
        with pytest.raises(ValueError, match=said):
            ours.prune_heads(heads)


@pytest.mark.parametrize("name", [MASKED, "XLMRobertaXLModel", "XLMRobertaXLForQuestionAnswering"])
def test_properties_equal_those_of_transformers(name):
    ours, theirs = pair(name)
    for given in ({}, {"exclude_embeddings": True}, {"only_trainable": True}):
        for model in (ours, theirs):
            model.base_model.encoder.layer[0].requires_grad_("only_trainable" not in given)
        assert ours.num_parameters(**given) == theirs.num_parameters(**given)
    assert (ours.device, ours.dtype) == (theirs.device, theirs.dtype)
    assert ours.half().dtype == torch.float16
    assert (ours.base_model is ours) == (theirs.base_model is theirs)


@pytest.mark.parametrize(
    ("layers", "hidden", "inner", "count"),
    [(36, 2560, 10240, 3_482_741_760), (48, 4096, 16384, 10_712_994_816)],
)
def test_num_parameters_on_the_meta_device(layers, hidden, inner, count):
    config = mlm.XLMRobertaXLConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner
    )
    with torch.device("meta"):
        assert mlm.XLMRobertaXLForMaskedLM(config).num_parameters() == count


def test_gradient_checkpointing_is_switched():
    ours = our_model(MASKED)
    assert not ours.is_gradient_checkpointing
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    assert ours.is_gradient_checkpointing
    assert ours.base_model.gradient_checkpointing
    ours.gradient_checkpointing_disable()
    assert not ours.is_gradient_checkpointing
    with pytest.raises(ValueError, match="use_reentrant=True is unsupported for gradient checkpoi"):
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert our_model(MASKED, gradient_checkpointing=True).is_gradient_checkpointing
