"""Filters against Hugging Face's own processors, draws against the distribution they should follow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cutaway.sampling.transform import NUCLEUS_GUESS, candidates, draw, largest, token_probability
from cutaway.sampling.types import Settings


def random_logits(rows: int, vocab: int, spread: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def hugging_face(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Probabilities after the processors of `generate`, in its order, in fp64."""
    scores, no_ids = logits.double(), torch.zeros(len(logits), 0, dtype=torch.long)
    scores = TemperatureLogitsWarper(settings.temperature)(no_ids, scores)
    if settings.top_k:
        scores = TopKLogitsWarper(settings.top_k)(no_ids, scores)
    if settings.top_p < 1:
        scores = TopPLogitsWarper(settings.top_p)(no_ids, scores)
    return scores.softmax(-1)


def dense(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    probs, ids = candidates(logits, settings)
    return torch.zeros(logits.shape, dtype=torch.float64).scatter_add(1, ids, probs)


@pytest.mark.parametrize("vocab", [5, NUCLEUS_GUESS, 1000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(0.6, 0.95, 0), (1.0, 1.0, 0), (1.7, 0.5, 0), (1.0, 0.9, 40), (0.8, 1.0, 7), (1.0, 1e-6, 0), (1.0, 0.9, 2000)],
)
def test_kept_sets_and_probabilities_are_those_of_hugging_face(vocab, spread, temperature, top_p, top_k):
    settings = Settings(temperature, top_p, top_k)
    logits = random_logits(6, vocab, spread)
    theirs = hugging_face(logits, settings)
    for ours, within in ((dense(logits.double(), settings), 1e-9), (dense(logits, settings), 1e-6)):
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=within, atol=1e-12)


@budget(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 700),
    spread=st.floats(0.0, 8.0),
    temperature=st.floats(0.1, 5.0),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_any_filter_leaves_a_distribution_with_the_most_likely_token(vocab, spread, temperature, top_p, top_k, seed):
    logits, settings = random_logits(3, vocab, spread, seed), Settings(temperature, top_p, top_k)
    probs, ids = candidates(logits, settings)
    torch.testing.assert_close(probs.sum(-1), torch.ones(3, dtype=torch.float64))
    assert (probs.diff(dim=-1) <= 1e-15).all()
    best = logits.gather(1, ids[:, :1])[:, 0]
    assert torch.equal(best, logits.max(-1).values)
    assert all(len(kept.unique()) == len(kept) for row, p in zip(ids, probs, strict=True) for kept in [row[p > 0]])


def test_draw_frequencies_follow_the_probabilities():
    settings, n = Settings(0.8, 0.9), 20_000
    logits = random_logits(1, 12, 1.5)
    uniforms = torch.tensor(np.random.default_rng(1).random(n))
    tokens, logprobs = draw(logits.expand(n, -1), uniforms, settings)
    expected = dense(logits, settings)[0].numpy()
    seen = np.bincount(tokens.numpy(), minlength=12)
    kept = expected > 0
    assert seen[~kept].sum() == 0
    assert chisquare(seen[kept], expected[kept] * n).pvalue > 0.001
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])


def test_a_banned_first_token_leaves_the_conditional_distribution():
    settings, n = Settings(0.7, 0.95), 20_000
    logits = random_logits(1, 10, 1.5, seed=3)
    expected = dense(logits, settings)[0].numpy()
    banned = int(expected.argmax())
    uniforms = torch.tensor(np.random.default_rng(2).random(n))
    tokens, _ = draw(logits.expand(n, -1), uniforms, settings, torch.full((n,), banned))
    expected[banned] = 0
    expected /= expected.sum()
    seen = np.bincount(tokens.numpy(), minlength=10)
    assert seen[expected == 0].sum() == 0
    assert chisquare(seen[expected > 0], expected[expected > 0] * n).pvalue > 0.001


@pytest.mark.parametrize("settings", [Settings(0.0), Settings(1.0, top_k=1), Settings(1.0, top_p=1e-9)])
def test_one_candidate_is_the_most_likely_token_and_banning_it_leaves_nothing(settings):
    logits = random_logits(4, 300, 1.0)
    best, uniforms = logits.argmax(-1), torch.tensor([0.0, 0.4, 0.999999, 1.0])
    assert torch.equal(draw(logits, uniforms, settings)[0], best)
    banned = best.clone()
    banned[1] = (best[1] + 1) % 300
    tokens, _ = draw(logits, uniforms, settings, banned)
    assert tokens.tolist() == [-1, int(best[1]), -1, -1]


@pytest.mark.parametrize("top_p", [0.9, 1.0, 5e-324])
def test_the_lowest_temperatures_draw_the_most_likely_token(top_p):
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    for temperature in (1e-12, 5e-324):
        tokens, logprobs = draw(logits, torch.full((4,), 0.7), Settings(temperature=temperature, top_p=top_p))
        assert torch.equal(tokens, logits.argmax(-1))
        assert bool(logprobs.isfinite().all())


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53, 1.0])
def test_the_ends_of_the_uniform_range_draw_kept_tokens(uniform):
    settings = Settings(1.0, 0.5)
    logits = random_logits(1, 600, 2.0)
    token = int(draw(logits, torch.tensor([uniform]), settings)[0])
    assert dense(logits, settings)[0, token] > 0
    assert token == int(logits.argmax()) or uniform > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_draws_the_same_beside_any_other_row(dtype):
    """Also among equal logits, which low precision makes common, and beside a row that needs the full sort."""
    settings, vocab = Settings(1.0, 0.95), 4000
    peaked = random_logits(40, vocab, 4.0, seed=5).to(dtype).float()
    flat = torch.zeros(1, vocab)
    uniforms = torch.tensor(np.random.default_rng(0).random(40))
    alone = [int(draw(row[None], u[None], settings)[0]) for row, u in zip(peaked, uniforms, strict=True)]
    beside = draw(torch.cat([peaked, flat]), torch.cat([uniforms, uniforms[:1]]), settings)[0][:40]
    assert alone == beside.tolist()


@pytest.mark.parametrize("settings", [Settings(0.6, 0.95), Settings(1.0, 0.99), Settings(0.0), Settings(1.3, 1.0, 5)])
def test_token_probability_is_the_filtered_softmax(settings):
    logits = random_logits(50, 400, 1.0)
    tokens = torch.cat([logits.argmax(-1)[:25], torch.arange(25)])
    found = token_probability(logits, tokens, settings)
    if settings.temperature == 0:
        expected = (tokens == logits.argmax(-1)).double()
    else:
        expected = hugging_face(logits, settings).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(found, expected)


@given(seed=st.integers(0, 10**6), vocab=st.integers(5, 400), most=st.integers(1, 12))
@budget(max_examples=60, deadline=None)
def test_the_largest_by_groups_are_thelargest(seed: int, vocab: int, most: int) -> None:
    rows = torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed))
    top, ids = largest(rows, most)
    assert torch.equal(top, rows.topk(min(most, vocab)).values)
    assert torch.equal(rows.gather(1, ids), top)
