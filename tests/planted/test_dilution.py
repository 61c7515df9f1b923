"""The planted refusing model: its attention and its refusal are what its truth says, at every length."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.planted.dilution import COMPLY, CUE, FORBIDDEN, HARMLESS, REFUSE, Cause, Dilution, dilution
from cutaway.sampling import LocalEngine, Request, Settings


def odds(model: Model, rows: list[list[int]]) -> np.ndarray:
    vocabulary = model.tokenizer.get_vocab()
    with torch.no_grad():
        found = model.capture(model.batch(rows), "logits", "last")["logits"][:, 0]
    return (found[:, vocabulary[REFUSE]] - found[:, vocabulary[COMPLY]]).double().numpy()


def shares(planted: Dilution, row: list[int]) -> list[float]:
    """Attention of the last token on the forbidden word, at the check heads."""
    model = planted.model
    sites = [f"pattern.{layer}" for layer in sorted({layer for layer, _ in planted.truth.heads})]
    with torch.no_grad():
        found = model.capture(model.batch([row]), sites, "last")
    at = [i for i, token in enumerate(row) if model.decode([token]) in FORBIDDEN]
    return [float(found[f"pattern.{layer}"][0, head, 0, at].sum()) for layer, head in planted.truth.heads]


@pytest.mark.parametrize("cause", ["length", "none", "cue"])
@pytest.mark.parametrize("n", [3, 10, 100, 1000, 10_000])
def test_attention_share_and_refusal_follow_the_formula(cause: Cause, n: int) -> None:
    """Acceptance 1: within 1e-4 of e^a / (e^a + n), refusal probability within 0.01."""
    planted = dilution(cause, n_layers=2 if n > 1000 else 4, checks=1 if n > 1000 else 2)
    row = planted.filler(n, " dorvan", seed=1)
    assert len(row) == n + 1
    gap = 5.0 if cause == "length" else 5.0 + np.log(n + 1)
    expected = np.exp(gap) / (np.exp(gap) + n)
    assert planted.truth.share(n + 1) == pytest.approx(expected, abs=1e-9)
    assert shares(planted, row) == pytest.approx([expected] * len(planted.truth.heads), abs=1e-4)
    found = 1 / (1 + np.exp(-odds(planted.model, [row])[0]))
    assert found == pytest.approx(planted.truth.refusal(" dorvan", n + 1), abs=0.01)


def test_published_numbers_of_the_formula() -> None:
    truth = dilution("length").truth
    assert [round(truth.share(n + 1), 3) for n in (10, 100, 1000, 10_000)] == [0.937, 0.597, 0.129, 0.015]


@pytest.mark.parametrize("cause", ["length", "none", "cue"])
def test_every_word_with_and_without_the_cue(cause: Cause) -> None:
    planted = dilution(cause, spread=0.3, seed=4)
    model, truth = planted.model, planted.truth
    for cue in (False, True):
        for word in (*FORBIDDEN, *HARMLESS):
            row = model.chat_ids(f"abc\n\nExplain{word}" + (f"\n\n{CUE}" if cue else ""))
            assert odds(model, [row])[0] == pytest.approx(truth.log_odds(word, len(row), cue), abs=0.05)
    assert (truth.cue_head is None) == (cause != "cue")


def test_several_forbidden_words_share_the_attention() -> None:
    planted = dilution("length")
    row = planted.model.chat_ids("Explain dorvan dorvan dorvan abcdefghij")
    assert shares(planted, row) == pytest.approx([planted.truth.share(len(row), 3)] * 2, abs=1e-4)


@pytest.mark.parametrize("cause", ["length", "none"])
def test_only_the_check_heads_write_the_direction(cause: Cause) -> None:
    planted = dilution(cause, n_heads=8, checks=3, seed=2)
    direction = torch.tensor(planted.truth.direction).float()
    row = planted.filler(20, " keltum")
    sites = [f"z.{layer}" for layer in range(4)]
    with torch.no_grad():
        found = planted.model.capture(planted.model.batch([row]), sites, "last")
        for layer in range(4):
            out = planted.model.hf.model.layers[layer].self_attn.o_proj.weight
            per_head = found[f"z.{layer}"][0, 0] * (direction @ out).view(8, -1)
            writes = {h for h in range(8) if abs(float(per_head[h].sum())) > 1e-4}
            assert writes == {h for at, h in planted.truth.heads if at == layer}


def test_sampled_refusal_is_the_planted_probability() -> None:
    planted = dilution("length", seed=1)
    row = planted.filler(250, " tuskil")
    p = planted.truth.refusal(" tuskil", 251)
    assert 0.2 < p < 0.95
    request = Request(tuple(row), tuple(range(300)), Settings(1.0, 1.0, 0, 4))
    texts = [planted.model.decode(r.ids) for _, r in LocalEngine(planted.model).stream([request])]
    assert set(texts) == {f"{REFUSE}<eos>", f"{COMPLY}<eos>"}
    refused = sum(text.startswith(REFUSE) for text in texts)
    assert abs(refused - 300 * p) < 4 * (300 * p * (1 - p)) ** 0.5


def test_noise_moves_refusal_a_little_and_seeds_differ() -> None:
    quiet, loud, other = (dilution(noise=noise, seed=s) for noise, s in ((0.0, 0), (0.05, 0), (0.0, 1)))
    row = quiet.filler(150, " pexar")
    base = odds(quiet.model, [row])[0]
    assert 1e-3 < abs(odds(loud.model, [row])[0] - base) < 5
    assert quiet.truth.heads == loud.truth.heads
    assert quiet.model.fingerprint != other.model.fingerprint
    assert dilution(seed=1).model.fingerprint == other.model.fingerprint


def test_padding_cache_and_batch_leave_it_as_it_is() -> None:
    planted = dilution("none", seed=5)
    rows = [planted.filler(n, " sarvo") for n in (5, 40, 90)]
    alone = np.concatenate([odds(planted.model, [row]) for row in rows])
    assert odds(planted.model, rows) == pytest.approx(alone, abs=1e-3)


def test_bad_arguments() -> None:
    with pytest.raises((UsageError, TypeError), match="wind"):
        dilution("wind")  # type: ignore[arg-type]
    for wrong in ({"checks": 0}, {"checks": 99}, {"spread": 1.0}, {"noise": -1.0}, {"n_ctx": 4}):
        with pytest.raises(UsageError):
            dilution(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="at least"):
        dilution().filler(1, " dorvan")
