"""Signals against the model's own attention, whatever batch a prompt is in."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Model, load_model
from cutaway.planted.build import quiet_llama, word_tokenizer
from cutaway.probes.safetynet import attention_summaries, read_signals, score_matrix

NAMES = ("resid_post.1 last", "neurons.0 mean", "attention.1")


@pytest.fixture(scope="module")
def model():
    tokenizer = word_tokenizer(tuple(f" w{i}" for i in range(20)))
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=64, dtype="float32", **shape
    )
    return Model(quiet_llama(config), tokenizer, "small")


def prompts(n, seed=0, low=4, high=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 23, int(rng.integers(low, high))).tolist() for _ in range(n)]


def eager_scores(model, ids, layer):
    """What goes into the softmax of a layer when Hugging Face computes it: [head pos pos]."""
    seen = []
    real = torch.nn.functional.softmax

    def spy(scores, *args, **kwargs):
        seen.append(scores.detach())
        return real(scores, *args, **kwargs)

    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    torch.nn.functional.softmax = spy
    try:
        with torch.no_grad():
            model.hf(torch.tensor([ids]))
    finally:
        torch.nn.functional.softmax = real
        model.hf.set_attn_implementation(before)
    return seen[layer][0]


def naive_summary(scores):
    out = [[], []]
    for row in (None, *range(scores.shape[1])):
        at = scores.shape[1] - 1 if row is None else row
        s = scores[:, at, : at + 1].double()
        p = s.softmax(-1)
        five = [s.logsumexp(-1), s.amax(-1), s.mean(-1), s.std(-1, correction=0), -(p * p.log()).sum(-1)]
        out[row is not None].append(torch.stack(five, -1).flatten())
    return torch.cat([out[0][0], torch.stack(out[1]).mean(0)])


def test_summaries_are_those_of_the_eager_scores(model):
    rows = prompts(5)
    found = attention_summaries(model, rows, {"a": 1})["a"]
    for ids, ours in zip(rows, found, strict=True):
        assert torch.allclose(ours.double(), naive_summary(eager_scores(model, ids, 1)), atol=1e-4)


def test_the_matrix_with_rotary_is_the_eager_one_and_without_is_not(model):
    (ids,) = prompts(1, low=8, high=9)
    n = len(ids)
    wanted = eager_scores(model, ids, 0).mean(0).tril()
    assert torch.allclose(score_matrix(model, [ids], 0).reshape(n, n), wanted, atol=1e-4)
    plain = score_matrix(model, [ids], 0, rotary=False).reshape(n, n)
    assert torch.allclose(plain.diagonal(), wanted.diagonal(), atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-4)


def test_a_prompt_has_the_same_signals_alone(model):
    rows = prompts(9, seed=1)
    whole = read_signals(model, rows, NAMES)
    for i, ids in enumerate(rows):
        alone = read_signals(model, [ids], NAMES)
        for name in NAMES:
            assert torch.allclose(whole[name][i], alone[name][0], atol=1e-4)


def test_smollm_scores_equal_its_eager_attention():
    try:
        real = load_model("smollm2-135m-instruct", dtype="float32")
    except CutawayError:
        pytest.skip("smollm2-135m-instruct is not installed")
    ids = real.chat_ids("Where is the lamp?")
    wanted = eager_scores(real, ids, 4)
    assert wanted.shape[0] == 9
    n = len(ids)
    found = score_matrix(real, [ids], 4).reshape(n, n)
    assert torch.allclose(found, wanted.mean(0).tril(), atol=1e-4)
    assert torch.allclose(attention_summaries(real, [ids], {"a": 4})["a"][0].double(), naive_summary(wanted), atol=1e-3)


def test_bad_input(model):
    rows = prompts(2)
    for call, match in [
        (lambda: read_signals(model, [], NAMES), "no prompts"),
        (lambda: read_signals(model, [[]], NAMES), "prompt 0 is empty"),
        (lambda: read_signals(model, [[3] * 65], NAMES), "reads 64"),
        (lambda: read_signals(model, rows, ["resid_post.1"]), "site pooling"),
        (lambda: read_signals(model, rows, ["resid_post.* last"]), "means 2 sites"),
        (lambda: read_signals(model, rows, ["attention.7"]), "layers 0 to 1"),
        (lambda: read_signals(model, rows, []), "at least one"),
        (lambda: score_matrix(model, [[3], [3, 4]], 0), "one length"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()


def test_values_that_are_not_finite_are_named(model):
    weight = model.hf.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] = torch.nan
        with pytest.raises(UsageError, match="nan"):
            read_signals(model, prompts(2), ["resid_post.1 last"])
    finally:
        with torch.no_grad():
            weight.copy_(kept)
