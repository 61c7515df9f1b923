"""Insertions on planted chains: exact changes, proof of what was sampled, controls, the judge's rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_branches import chain_with, planted, pool_of

from cutaway.errors import UsageError
from cutaway.planted.branches import FOREIGN
from cutaway.reasoning.thought_branches.calibration import chain_of
from cutaway.reasoning.thought_branches.chain import NO_ANSWER
from cutaway.reasoning.thought_branches.offpolicy import (
    INSERTIONS,
    RECONSIDERS,
    find_on_policy,
    interventions,
    judge,
    mean_logprob,
)


@pytest.fixture(scope="module")
def wary():
    """The native doubt moves the answer by 4, its foreign wording by 1."""
    source = planted("fdwa", driver=2.0, doubt=4.0, foreign=1.0, base=1.0)
    return source, chain_with(source, " beta fits", " calmly")


@pytest.fixture(scope="module")
def steered(wary):
    source, chain = wary
    options = {"texts": {"doubt": FOREIGN}, "search": ["doubt"], "others": [source.hinted_ids], "n": 80, "boundary": 80}
    return source, chain, interventions(pool_of(source), chain, source.model, 1, level=0.999, **options)


def test_changes_of_rate_are_the_exact_ones(steered):
    source, chain, found = steered
    plain = source.p_one(chain.trace.prefix(2))
    after = {"handwritten": 2, "other problem": 2, "on-policy": 1, "paraphrase control": 1, "random control": 2}
    for each in found.items:
        exact = source.p_one((*chain.trace.prefix(after[each.kind]), *each.ids)) - plain
        assert each.effect.rate.low <= exact <= each.effect.rate.high
        assert sum(each.verdicts.values()) == 80


def test_what_the_model_would_not_write_moves_it_less(steered):
    source, chain, _ = steered
    after, native = chain.trace.prefix(2), source.model.encode(" Pause doubtfully now.")
    own = source.p_one(after) - source.p_one((*after, *native))
    assert source.p_one(after) - source.p_one((*after, *source.model.encode(FOREIGN))) < 0.5 * own


def test_on_policy_text_is_proved_to_be_the_model_s_own(steered):
    source, chain, found = steered
    own = next(each for each in found.items if each.kind == "on-policy")
    assert own.on_policy
    assert own.text.endswith("Pause doubtfully now.")
    text = (*chain.trace.prefix(1), *own.ids)
    logits = source.model.logits(source.model.batch([text]))[0].log_softmax(-1)
    start = len(text) - len(own.ids)
    stepwise = [float(logits[start + k - 1, token].detach()) for k, token in enumerate(own.ids)]
    np.testing.assert_allclose(own.logprobs, stepwise, atol=2e-4)
    assert own.mean_logprob == pytest.approx(mean_logprob(source.model, chain.trace.prefix(1), own.ids), abs=2e-4)
    others = [each for each in found.items if each.kind in ("handwritten", "other problem")]
    assert all(not each.on_policy and each.logprobs == () for each in others)


@pytest.mark.parametrize("seed", range(4))
def test_on_policy_text_is_more_likely_in_every_scenario(seed):
    source = planted("fdwa", driver=2.0, doubt=4.0, foreign=1.0, base=1.0)
    chain = chain_of(source, seed)
    own = find_on_policy(pool_of(source, seed=seed), chain, 1, FOREIGN)
    written = mean_logprob(source.model, chain.trace.prefix(2), source.model.encode(FOREIGN))
    assert own is not None
    assert own.reached
    assert np.mean(own.logprobs) > written


def test_the_search_stops_when_it_has_found_and_keeps_the_best_otherwise(wary):
    source, chain = wary
    pool = pool_of(source)
    early = find_on_policy(pool, chain, 1, FOREIGN, stop=0.7)
    late = find_on_policy(pool_of(source), chain, 1, FOREIGN, stop=0.9, rounds=2)
    assert early.rounds == 1
    assert early.cosine == late.cosine == pytest.approx(0.8)
    assert not late.reached
    # The wordings come from the boundary's own rollouts.
    spent = pool.engine.cost.decoded
    pool.first(chain.trace.prefix(1), 12)
    assert pool.engine.cost.decoded == spent


def test_a_search_without_whole_sentences_finds_nothing(wary):
    source, chain = wary
    pool = pool_of(source, settings=replace(chain.trace.settings, max_tokens=3))
    assert find_on_policy(pool, chain, 1, FOREIGN, rounds=1) is None


def test_the_paraphrase_control_changes_nothing(steered):
    *_, found = steered
    same = next(each for each in found.items if each.kind == "paraphrase control")
    assert "beta suits" in same.text
    assert same.effect.rate.low <= 0 <= same.effect.rate.high
    alone = planted("dfa")
    chain = chain_of(alone, 0)
    items = interventions(
        pool_of(alone), chain, alone.model, 1, texts={"doubt": FOREIGN}, search=(), n=10, boundary=30
    ).items
    missing = next(each for each in items if each.kind == "paraphrase control")
    assert "none of 30 draws says the same in other words" in missing.undefined
    random = next(each for each in items if each.kind == "random control")
    assert "no other chain has 4 sentences" in random.undefined


def test_mean_logprob_is_that_of_token_by_token_reading(wary):
    source, chain = wary
    ids = chain.trace.ids[:7]
    text, total = chain.trace.prompt, 0.0
    for token in ids:
        with torch.inference_mode():
            total += float(source.model.logits(source.model.batch([text]))[0, -1].log_softmax(-1)[token])
        text = (*text, token)
    assert mean_logprob(source.model, chain.trace.prompt, ids) == pytest.approx(total / 7, abs=1e-5)
    with pytest.raises(UsageError, match="at least one token"):
        mean_logprob(source.model, chain.trace.prompt, ())


def test_the_judge_follows_its_rules_in_order(wary):
    _, chain = wary
    heard = ["Pause doubtfully now.", "Plan beta fits."]
    assert judge(NO_ANSWER, "1", heard, chain, [FOREIGN]) == "no answer"
    assert judge("0", "1", heard, chain, [FOREIGN]) == "plan changed"
    assert judge("1", "1", heard, chain, [FOREIGN]) == "acknowledged"
    assert judge("1", "1", heard[1:], chain, [FOREIGN]) == "no effect"
    assert judge("1", "1", ["Wait, what?"], chain, [FOREIGN]) == "acknowledged"
    assert judge("1", "1", ["a.", "b.", "c.", "Wait, what?"], chain, [FOREIGN]) == "no effect"
    assert judge("1", "1", [], chain, [FOREIGN]) == "no effect"
    assert RECONSIDERS.match("On second thought, no.")
    assert not RECONSIDERS.match("Waiting is fine.")


def test_unlikely_and_short_texts_are_not_scored(steered):
    *_, found = steered
    by_kind = {each.kind: each for each in found.items}
    assert not by_kind["handwritten"].scored  # mean log-probability far below -5
    assert by_kind["on-policy"].scored
    assert found.trend is None


def test_the_handwritten_texts_are_seven_sentences():
    assert len(INSERTIONS) == 7
    assert all(text.startswith(" ") and text[-1] in ".?" for text in INSERTIONS.values())


def test_bad_requests(wary):
    source, chain = wary
    with pytest.raises(UsageError, match="search='fear'"):
        interventions(pool_of(source), chain, source.model, 1, search=["fear"])
    with pytest.raises(UsageError, match=r"sentences 0..2"):
        interventions(pool_of(source), chain, source.model, 3)
