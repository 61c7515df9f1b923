"""Heads: found by what they carry, ablated against random sets, and given back what length took."""

import math

import numpy as np
import pytest
from asked import LONG, ask, planted, readout
from tiny_models import tiny

from cutaway.errors import UsageError
from cutaway.model import AttentionMask, Mask
from cutaway.planted.dilution import Cause, dilution
from cutaway.reasoning.attention import last_row_attention
from cutaway.reasoning.cot_hijacking.heads import (
    LOOKS,
    ablate_heads,
    attention_bias,
    give_back,
    random_sets,
    scan_heads,
    zeroing,
)
from cutaway.reasoning.cot_hijacking.length import Prompt
from cutaway.reasoning.cot_hijacking.reading import Readout, refusal_odds
from cutaway.sampling import LocalEngine, Request, Settings


@pytest.mark.parametrize("seed", range(2))
def test_planted_heads_rank_on_top_and_hold_refusal(seed: int) -> None:
    """Acceptance 2 on hand-built models with random distractors; heads chosen and tested on different requests."""
    each = planted(seed=seed)
    bad, good = ({n: ask(each, n, forbidden=forbidden) for n in (0, LONG)} for forbidden in (True, False))
    scan = scan_heads(
        each.model, {n: p[:2] for n, p in bad.items()}, {n: p[:2] for n, p in good.items()}, readout(each)
    )
    assert set(scan.ranking()[:3]) == set(each.truth.heads)
    for layer, head in each.truth.heads:
        for i, length in enumerate(scan.lengths):
            expected = np.mean([each.truth.share(len(p.ids)) for p in bad[length][:2]])
            assert scan.share[i, layer, head] >= expected - 1e-4  # the request's other word adds a little
            assert scan.share[i, layer, head] <= expected + 0.2
    assert (scan.normalised[1] > scan.normalised[0])[tuple(zip(*each.truth.heads, strict=True))].all()
    test = ablate_heads(each.model, [p.ids for p in bad[0][4:6]], scan.ranking()[:3], readout(each), sets=60)
    assert test.drop.value >= 0.8
    assert test.p <= 1 / 50
    assert max(test.random_drops) < 0.05


def test_needed_is_what_each_head_writes() -> None:
    """Oracle: a blind check head loses slope * share * strength / checks of log-odds; no other head loses anything."""
    each = dilution("length", n_heads=8, checks=3, seed=5)
    bad, good = ({n: ask(each, n, forbidden=f)[:2] for n in (0, 60)} for f in (True, False))
    scan = scan_heads(each.model, bad, good, readout(each))
    wanted = np.zeros((4, 8))
    for layer, head in each.truth.heads:
        wanted[layer, head] = np.mean([20 * each.truth.share(len(p.ids)) / 3 for p in bad[0]])
    assert scan.needed == pytest.approx(wanted, abs=0.02)
    row = last_row_attention(each.model, bad[60][0].ids, [bad[60][0].request])[:, :, 0].numpy()
    other = last_row_attention(each.model, bad[60][1].ids, [bad[60][1].request])[:, :, 0].numpy()
    assert scan.share[1] == pytest.approx((row + other) / 2, abs=1e-6)
    assert scan.uniform == pytest.approx([2 / len(p[0].ids) for p in bad.values()])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox"])
def test_needed_is_the_loss_under_an_attention_mask(family: str) -> None:
    """Oracle on random weights: hide the request from one head at a time, prompt by prompt."""
    model = tiny(family)
    rng = np.random.default_rng(0)

    def prompts(n: int) -> list[Prompt]:
        ids = rng.integers(5, model.vocab_size, (2, n + 9)).tolist()
        return [Prompt(tuple(row), (n + 1, n + 4), None, n) for row in ids]

    bad, good = ({n: prompts(n) for n in (0, 12)} for _ in range(2))
    found = scan_heads(model, bad, good, Readout((7, 9)))
    lost = np.zeros((2, *found.needed.shape))
    for i, prompt in enumerate((*bad[0], *good[0])):
        base = refusal_odds(model, [prompt.ids], Readout((7, 9)))[0]
        for layer, head in np.ndindex(*found.needed.shape):
            blind = AttentionMask(layer, slice(prompt.request[1], None), slice(*prompt.request), head)
            lost[i // 2, layer, head] += (base - refusal_odds(model, [prompt.ids], Readout((7, 9)), [blind])[0]) / 2
    expected = np.where(found.share[0] >= LOOKS, lost[0] - lost[1], 0.0)
    assert np.abs(expected).max() > 1e-3
    assert found.needed == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("cause", ["length", "cue", "none"])
def test_giving_back_restores_what_dilution_took_and_nothing_else(cause: Cause) -> None:
    """Acceptance 3."""
    each = planted(cause, seed=2)
    short, long = ask(each, 0)[:4], ask(each, LONG, cue=cause == "cue")[:4]
    found = give_back(each.model, short, long, each.truth.heads, readout(each), controls=1)
    assert found.short.value > 0.99
    if cause == "length":
        assert found.long.value < 0.6
        assert found.restored.value >= 0.9
        assert abs(found.control.value) < 0.05
    else:
        assert abs(found.returned.value) < 0.01
        assert (
            found.restored.value == pytest.approx(0, abs=0.01) if cause == "cue" else math.isnan(found.restored.value)
        )


def test_the_bias_gives_exactly_the_short_prompts_share_back() -> None:
    each = dilution("length", seed=4)
    short, long = ask(each, 0)[0], ask(each, LONG)[0]
    layer, head = each.truth.heads[0]
    with each.model.edited(*attention_bias(short, long, each.truth.heads)):
        share = last_row_attention(each.model, long.ids, [long.request])[layer, head, 0]
    plain = last_row_attention(each.model, short.ids, [short.request])[layer, head, 0]
    assert float(share) == pytest.approx(float(plain), abs=1e-4)
    with pytest.raises(UsageError, match="swap them"):
        attention_bias(long, short, each.truth.heads)


def test_sampling_under_the_bias_refuses_again() -> None:
    each = dilution("length", seed=4)
    short, long = ask(each, 0)[0], ask(each, LONG)[0]
    request = Request(long.ids, tuple(range(20)), Settings(1.0, 1.0, 0, 3))
    engine = LocalEngine(each.model)
    starved = [r.ids[0] for _, r in engine.stream([request])]
    fed = [r.ids[0] for _, r in engine.stream([request], attention_bias(short, long, each.truth.heads))]
    refuse = readout(each).refuse[0]
    assert starved.count(refuse) < 18
    assert fed.count(refuse) == 20


def test_random_sets_are_different_and_of_the_same_layers() -> None:
    each = planted()
    heads = ((1, 0), (1, 3), (2, 5))
    drawn = random_sets(each.model, heads, 50, seed=0)
    assert len(set(drawn)) == 50 == len(random_sets(each.model, heads, 50, seed=1))
    assert drawn != random_sets(each.model, heads, 50, seed=1)
    for one in drawn:
        assert [layer for layer, _ in one] == [1, 1, 2]
        assert not set(one) & set(heads)
    assert len(random_sets(each.model, heads, 1000, seed=0)) == math.comb(6, 2) * 7
    with pytest.raises(UsageError, match="too few others"):
        random_sets(each.model, [(1, h) for h in range(5)], 10, seed=0)
    with pytest.raises(UsageError, match="heads is empty"):
        random_sets(each.model, [], 10, seed=0)


def test_p_is_the_rank_among_random_sets() -> None:
    each = planted(seed=1)
    rows = [p.ids for p in ask(each, 0)[:3]]
    test = ablate_heads(each.model, rows, [(0, 0)], readout(each), sets=200)
    base = refusal_odds(each.model, rows, readout(each))
    drops = [float((base - refusal_odds(each.model, rows, readout(each), [Mask("z.0", h)])).mean()) for h in range(8)]
    assert test.odds_drop == pytest.approx(drops[0], abs=1e-5)
    assert test.p == (1 + sum(d >= drops[0] for d in drops[1:])) / 8
    assert zeroing([(0, 1), (2, 0), (0, 3)]) == [Mask("z.0", [1, 3]), Mask("z.2", 0)]


def test_bad_scans() -> None:
    each = planted()
    prompts = ask(each, 0)[:2]
    with pytest.raises(UsageError, match="two or more lengths"):
        scan_heads(each.model, {0: prompts}, {0: prompts}, readout(each))
    with pytest.raises(UsageError, match="one pair for each goal"):
        give_back(each.model, prompts, prompts[:1], [(1, 1)], readout(each))
    scan = scan_heads(each.model, {0: prompts, 9: prompts}, {0: prompts, 9: prompts}, readout(each))
    with pytest.raises(UsageError, match="choose needed or share"):
        scan.ranking("size")


@pytest.mark.slow  # twenty models, 200 sets each
def test_head_finder_over_twenty_models() -> None:
    """Acceptance 2 on hand-built models: 20 of 20, a drop of 0.8, p < 0.01 against 200 sets."""
    found = []
    for seed in range(20):
        each = dilution("length", n_heads=16, checks=4, noise=0.02, spread=0.1, seed=seed)
        bad, good = ({n: ask(each, n, forbidden=f) for n in (0, LONG)} for f in (True, False))
        scan = scan_heads(
            each.model, {n: p[:4] for n, p in bad.items()}, {n: p[:4] for n, p in good.items()}, readout(each)
        )
        test = ablate_heads(each.model, [p.ids for p in bad[0][6:]], scan.ranking()[:4], readout(each), sets=200)
        found.append((set(scan.ranking()[:4]) == set(each.truth.heads), test.drop.value, test.p))
    assert all(top and drop >= 0.8 and p < 0.01 for top, drop, p in found), found
