"""Pools, chains and comparisons: what is shared, what is kept apart, what is undefined."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from planted_branches import chain_with, planted, pool_of, tree_of

from cutaway.errors import UsageError
from cutaway.reasoning.rollouts import draw_rollouts
from cutaway.reasoning.thought_branches.calibration import SETTINGS, chain_of
from cutaway.reasoning.thought_branches.chain import (
    NO_ANSWER,
    Chain,
    Pool,
    compare,
    constant,
    plain,
    start_of,
    texts_of,
    whole_sentence,
)
from cutaway.reasoning.thought_branches.importance import importance
from cutaway.sampling import LocalEngine, Rollout, Settings
from cutaway.stats import kl


def test_a_pool_draws_what_the_room_draws_and_each_once(tmp_path):
    source = planted("drsa")
    with tree_of(source, tmp_path) as tree:
        pool = pool_of(source, tree=tree)
        found = pool.first(source.prompt_ids, 5)
        room = draw_rollouts(pool.engine, [source.prompt_ids], 5, SETTINGS, tree=tree)[0]
        assert found == room
        spent = pool.engine.cost.decoded
        assert pool.first(source.prompt_ids, 3) == found[:3]
        assert pool.engine.cost.decoded == spent
        assert pool.first(source.prompt_ids, 9)[:5] == found


def test_equal_prefixes_get_different_rollouts():
    source = planted("drsa")
    pool, used = pool_of(source), Counter()
    first = pool.next([source.prompt_ids] * 3, used)
    second = pool.next([source.prompt_ids] * 2, used)
    assert [*first, *second] == pool.first(source.prompt_ids, 5)
    assert len({each.seed for each in (*first, *second)}) == 5


def test_a_rollout_that_repeats_the_sentence_serves_the_next_boundary():
    source = planted("dfa")
    chain = chain_of(source, 0)
    before, said = chain.trace.prompt, chain.said(0)
    pool = pool_of(source)
    free = pool.first(before, 200)
    pool.inherit(before, said)
    same = [each for each in free if each.ids[: len(said)] == said]
    spent = pool.engine.cost.decoded
    kept = pool.first((*before, *said), len(same))
    assert pool.engine.cost.decoded == spent
    assert [each.ids for each in kept] == [each.ids[len(said) :] for each in same]
    assert 20 < len(same) < 80
    # The rest is drawn afresh, as if nothing had been inherited.
    more = pool.first((*before, *said), len(same) + 3)[len(same) :]
    assert more == pool_of(source).first((*before, *said), 3)
    alone = pool_of(source, reuse=False)
    alone.first(before, 200)
    alone.inherit(before, said)
    assert alone.first((*before, *said), 3) == pool_of(source).first((*before, *said), 3)


def test_inherited_rollouts_follow_the_same_distribution():
    source = planted("dwa", driver=1.0, doubt=2.0)
    chain, shares = chain_of(source, 0), []
    before, said = chain.trace.prompt, chain.said(0)
    for reuse in (True, False):
        pool = pool_of(source, reuse=reuse)
        pool.first(before, 700)
        pool.inherit(before, said)
        answers = chain.answers(1, pool.first((*before, *said), 160))
        shares.append(answers.count("1") / 160)
    truth = source.exact(chain.trace.ids, 0).kept
    assert shares == pytest.approx([truth, truth], abs=4 * np.sqrt(0.25 / 160))


def test_nothing_is_inherited_next_to_a_cut_rollout():
    source = planted("dffa")
    chain = chain_of(source, 0)
    pool = pool_of(source, settings=Settings(1.0, 1.0, 0, 10))
    pool.first(chain.trace.prompt, 50)
    pool.inherit(chain.trace.prompt, chain.said(0))
    fresh = Pool(LocalEngine(source.model, 256), pool.settings)
    assert pool.first(chain.trace.prefix(1), 4) == fresh.first(chain.trace.prefix(1), 4)


def test_greedy_sampling_is_refused():
    with pytest.raises(UsageError, match="temperature=0"):
        pool_of(planted("da"), settings=Settings(0.0))


def test_sentences_of_a_continuation_and_where_they_begin():
    source = planted("drsa")
    ids, decode = source.sample(0), source.model.decode
    texts = texts_of(ids, decode)
    assert texts == [plain(t) for t in chain_of(source, 0).trace.texts(decode)]
    for k, start in enumerate(source.boundaries(ids)[:-1]):
        assert start_of(ids, k, decode) == start
    assert plain(" The answer is 1.<eos>") == "The answer is 1."
    assert plain("a < b and <b>.") == "a < b and <b>."


def test_a_sentence_that_was_cut_is_not_whole():
    source = planted("da")
    decode, ids = source.model.decode, source.sample(0)
    assert whole_sentence(Rollout(0, ids, (), "stop"), decode, 48) == ids[:4]
    assert whole_sentence(Rollout(0, ids[:3], (), "length"), decode, 48) is None
    assert whole_sentence(Rollout(0, ids, (), "stop"), decode, 3) is None
    assert whole_sentence(Rollout(0, (), (), "stop"), decode, 3) is None


def test_what_can_be_examined():
    source = planted("drsa")
    chain = chain_of(source, 0)
    assert chain.body == 3
    marked = replace(chain, end_mark=" helps")
    assert marked.body == 1
    with pytest.raises(UsageError, match="no end marker '</think>'"):
        replace(chain, end_mark="</think>")
    with pytest.raises(UsageError, match="threshold=0"):
        replace(chain, threshold=0.0)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@budget(max_examples=60, deadline=None)
def test_comparison_by_its_formulae(n, m, data):
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    having, lacking = ["1"] * a + ["0"] * (n - a), ["1"] * b + ["0"] * (m - b)
    found = compare(having, lacking, "1")
    assert found.rate.value == pytest.approx(a / n - b / m)
    assert found.rate.low - 1e-9 <= found.rate.value <= found.rate.high + 1e-9
    if 0 < a < n or 0 < b < m:
        odds = np.log((a + 0.5) / (n - a + 0.5)) - np.log((b + 0.5) / (m - b + 0.5))
        assert found.log_odds.value == pytest.approx(odds)
    else:
        assert found.log_odds is None
    swapped = compare(lacking, having, "1")
    assert swapped.rate.value == pytest.approx(-found.rate.value)


def test_divergence_is_that_of_what_is_lost():
    having, lacking = ["1"] * 90 + ["0"] * 10, ["1"] * 30 + ["0"] * 60 + ["2"] * 10
    found = compare(having, lacking, "1")
    assert found.kl.value == pytest.approx(kl([60, 30, 10], [10, 90, 0], jackknife=True), abs=1e-9)
    assert found.kl.low < found.kl.value < found.kl.high
    same = compare(having, list(having), "1", seed=1)
    assert same.kl.low == 0


def test_what_cannot_be_compared_says_why():
    assert compare([], ["1"], "1").undefined == "no rollout with it"
    assert compare(["1"], [], "1", why="all capped").undefined == "all capped"
    assert "judge failed" in compare([NO_ANSWER], [NO_ANSWER] * 2, "1").undefined
    assert compare([NO_ANSWER], ["1"], "1").rate.value == -1
    assert "all 3 rollouts answered '1'" in constant([["1", "1"], ["1"]])
    assert constant([["1"], ["0"]]) == ""


def test_importance_equals_enumeration_and_says_when_it_falls_back():
    source = planted("drsa", reason=(0.02, 0.7))
    chain = chain_with(source, " beta", " red", " Idea")
    found = importance(pool_of(source), chain, n=200, level=0.9999)
    for i, each in enumerate(found):
        exact = source.exact(chain.trace.ids, i)
        assert each.differ.low <= exact.differ <= each.differ.high
        assert each.after.low <= exact.kept <= each.after.high
        assert not each.resampled
        assert each.effect.rate.low <= exact.kept - exact.changed <= each.effect.rate.high
    alpha = chain_with(source, " alpha", " blue")
    rare = importance(pool_of(source), alpha, n=200)[1]
    assert rare.resampled
    assert rare.effect.n_without == 200
    assert abs(rare.effect.rate.value) < 0.05


def test_a_constant_outcome_is_undefined():
    source = planted("dfa", driver=0.0, base=60.0)
    for each in importance(pool_of(source), chain_of(source, 0), n=20):
        assert "all 60 rollouts answered '1'" in each.effect.undefined
        assert each.effect.rate is None


def test_a_judge_that_fails_is_a_visible_label():
    source = planted("dfa")
    whole = chain_of(source, 0)
    blind = Chain(whole.trace, lambda text: None, whole.decode, whole.embed, "1")
    assert all("nothing to explain" in each.effect.undefined for each in importance(pool_of(source), blind, n=10))
    half = replace(whole, outcome=lambda text: None if "amber" in text else source.outcome(text))
    answers = half.answers(0, pool_of(source).first(source.prompt_ids, 40))
    assert 5 < answers.count(NO_ANSWER) < 35
