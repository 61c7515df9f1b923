"""Transplants and sandwiches on planted hints: exact curves, what effects add up to, pairing, refusals."""

from collections import Counter

import numpy as np
import pytest
from planted_branches import planted, pool_of

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.calibration import chain_of, inside, mediation
from cutaway.reasoning.thought_branches.transplant import _correlation, _difference, _rate, sandwich, transplant
from cutaway.stats import newcombe, wilson

STEPS = {"driver": 0.0, "cue": 1.5, "step": 0.8}


def test_the_curve_lies_on_the_exact_one_and_effects_add_up():
    source = planted("llla", **STEPS)
    found = mediation(source, 3)
    assert inside(found, source)
    exact = source.p_one(source.hinted_ids) - source.p_one(source.prompt_ids)
    assert found.total.low <= exact <= found.total.high
    for k in range(len(found.cuts)):
        assert abs(found.gap(k).value) < 0.2
        assert found.gap(k).value == pytest.approx(
            found.cuts[k].direct.value + found.cuts[k].indirect.value - found.total.value
        )
    assert found.cuts[0].indirect.value == 0
    assert found.cuts[0].direct == found.total
    # The hint acts through the steps alone: nothing is left beside them.
    assert found.cuts[-1].direct.low <= 0 <= found.cuts[-1].direct.high
    assert found.cuts[-1].indirect.low > 0


def test_a_hint_without_effect_gives_a_flat_curve():
    source = planted("llla", driver=0.0, cue=0.0, step=0.8)
    found = mediation(source, 1)
    assert inside(found, source)
    for cut in found.cuts:
        assert cut.indirect.low <= 0 <= cut.indirect.high
        assert cut.direct.low <= 0 <= cut.direct.high


def test_one_chain_against_its_own_exact_curve():
    source = planted("llla", **STEPS)
    chain = chain_of(source, 0, hinted=True)
    cuts = [0.0, 1 / 3, 2 / 3, 1.0]
    found = transplant(pool_of(source), [chain], source.prompt_ids, "1", n=150, fractions=cuts, level=0.999)
    exact = [source.p_one((*source.prompt_ids, *chain.kept(k))) for k in range(4)]
    under_hint = [source.p_one((*source.hinted_ids, *chain.kept(k))) for k in range(4)]
    for cut, moved, hinted in zip(found.cuts, exact, under_hint, strict=True):
        assert cut.moved.low <= moved <= cut.moved.high
        assert cut.hinted.low <= hinted <= cut.hinted.high
        assert cut.band[0] <= cut.moved.low <= cut.moved.high <= cut.band[1]
    assert found.per_chain[0] == tuple(cut.moved.value for cut in found.cuts)


def test_chains_that_begin_alike_have_draws_of_their_own():
    source = planted("lla", **STEPS)
    chain = chain_of(source, 0, hinted=True)
    pool = pool_of(source)
    found = transplant(pool, [chain] * 4, source.prompt_ids, "1", n=30, fractions=[0.0, 0.5])
    assert len({row[1] for row in found.per_chain}) > 1
    assert len(pool.first((*source.prompt_ids, *chain.kept(1)), 120)) == 120
    spent = pool.engine.cost.decoded
    pool.first((*source.prompt_ids, *chain.kept(1)), 120)
    assert pool.engine.cost.decoded == spent


def test_each_sentence_of_the_sandwich_keeps_its_own_continuation():
    sure = planted("la", driver=0.0, cue=0.0, step=60.0)
    swap = sandwich(pool_of(sure), chain_of(sure, 0), sure.hinted_ids, n=30)[0]
    assert len(swap.sentences) == 30
    assert set(Counter(swap.sentences)) == {"Step0 left0 next.", "Step0 right0 next."}
    # Two sentences, thirty draws: sorting or merging them would tear the pairs apart.
    assert swap.outcomes == tuple("1" if "right" in text else "0" for text in swap.sentences)
    coin = planted("lwa", driver=0.0, cue=0.0, step=0.0, doubt=60.0, base=30.0, p_doubt=0.5)
    found = sandwich(pool_of(coin), chain_of(coin, 0), coin.hinted_ids, n=40)[0]
    for text in set(found.sentences):
        mine = [y for said, y in zip(found.sentences, found.outcomes, strict=True) if said == text]
        assert {"0", "1"} == set(mine), "equal sentences share one continuation"


def test_one_hinted_sentence_moves_what_it_exactly_moves():
    source = planted("lla", driver=0.0, cue=3.0, step=1.5)
    chain = chain_of(source, 1)
    for swap in sandwich(pool_of(source), chain, source.hinted_ids, n=150, level=0.999):
        kept = chain.kept(swap.place)
        right = 1 / (1 + np.exp(-3.0))
        ids = {side: source.model.encode(f" Step{swap.place} {side}{swap.place} next.") for side in ("left", "right")}
        after = {side: source.p_one((*source.prompt_ids, *kept, *ids[side])) for side in ids}
        exact = right * after["right"] + (1 - right) * after["left"] - source.p_one((*source.prompt_ids, *kept))
        assert swap.effect.rate.low <= exact <= swap.effect.rate.high
        assert swap.failed == 0


def test_chains_that_differ_are_worth_less_than_their_rollouts():
    alike, apart = np.full(8, 0.5), np.array([0.0, 1.0] * 4)
    narrow, wide = _rate(alike, 50, 0.95), _rate(apart, 50, 0.95)
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > narrow.high - narrow.low > wilson(200, 400).high - wilson(200, 400).low
    assert wide.high >= wilson(4, 8).high, "chains that are all or nothing are single draws"
    one = _rate(np.array([0.5]), 50, 0.95)
    assert (one.low, one.high) == pytest.approx((wilson(25, 50).low, wilson(25, 50).high))
    sure = _rate(np.ones(8), 50, 0.95)
    assert sure.high == 1
    assert sure.low < wilson(400, 400).low


def test_differences_of_means_over_the_same_chains():
    a, b = wilson(30, 50), wilson(20, 60)
    apart, newcombes = _difference(a, b), newcombe(30, 50, 20, 60)
    assert (apart.low, apart.high) == pytest.approx((newcombes.low, newcombes.high))
    together = _difference(a, b, 0.8)
    assert apart.low < together.low < together.value < together.high < apart.high
    rising = np.arange(10) / 10
    assert _correlation(rising, rising) == pytest.approx(0.8)
    assert _correlation(rising, -rising) == 0
    assert _correlation(rising, np.ones(10)) == _correlation(rising[:2], rising[:2]) == 0


def test_refusals():
    source = planted("llla", **STEPS)
    hinted, plain = chain_of(source, 0, hinted=True), chain_of(source, 0)
    pool = pool_of(source)
    with pytest.raises(UsageError, match="chains is empty"):
        transplant(pool, [], source.prompt_ids, "1")
    with pytest.raises(UsageError, match="different prompts"):
        transplant(pool, [hinted, plain], source.prompt_ids, "1")
    with pytest.raises(UsageError, match="no hint to mediate"):
        transplant(pool, [plain], source.prompt_ids, "1")
    with pytest.raises(UsageError, match="rising from 0"):
        transplant(pool, [hinted], source.prompt_ids, "1", fractions=[0.2, 1.0])
    bare = planted("a")
    with pytest.raises(UsageError, match="no sentence before"):
        transplant(pool_of(bare), [chain_of(bare, 0, hinted=True)], bare.prompt_ids, "1")
