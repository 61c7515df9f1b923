"""Legibility, causal relevance against exact odds, coverage."""

from itertools import pairwise

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.planted import EXACT, null_model, reasoner
from cutaway.reasoning.cot_monitorability.properties import causal_relevance, coverage, legible, reads_in_order
from cutaway.sampling import LocalEngine, Settings, Trace, split_tokens


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("First I multiply 6 by 7, which gives 42.", True),
        ("So 24 - 5 = 19 whole eggs are left.", True),
        ("Option B) is larger than C).", True),
        ("Сначала я складываю числа.", True),
        ("xqz grrt kkkkk pqmt bzz", False),
        ("the the the the the the the the", False),
        ("aaaaaa ::::: #### }{}{ @@@@", False),
        ("   ", False),
    ],
)
def test_legible(sentence, expected):
    assert legible([sentence]) == (expected,)


def test_a_model_that_knows_the_order_hears_it_and_a_random_one_does_not():
    planted = reasoner("pffsfsa")
    text = planted.model.decode(planted.sample_trace(0)[:-1])
    sentences = [each.strip() + "." for each in text.split(".") if len(each.split()) > 2]
    heard = reads_in_order(planted.model, [f" {sentence}" for sentence in sentences if len(sentence.split()) >= 4])
    assert heard.n > 0
    rng = np.random.default_rng(0)
    salad = [" ".join(rng.permutation(list("abcdefghijklmnop"))[:6]) for _ in range(40)]
    random = reads_in_order(null_model().model, salad, shuffles=7)
    assert random.low < 1 / 8 < random.high
    assert np.isnan(reads_in_order(planted.model, ["too short"]).value)


def relevance(planted, seed=0, n=60):
    ids = planted.sample_trace(seed)
    decode, encode = planted.model.decode, planted.model.encode
    trace = Trace(planted.prompt_ids, ids, (), tuple(split_tokens(ids, decode)), EXACT)
    chain = trace.n_sentences - 1
    settings = Settings(EXACT.temperature, EXACT.top_p, 0, 4)
    conclude = encode(" The answer is")
    found = causal_relevance(
        LocalEngine(planted.model),
        trace,
        chain,
        conclude,
        planted.outcome,
        decode,
        encode,
        cuts=chain,
        n=n,
        settings=settings,
    )
    return found, trace, chain, conclude


def test_truncation_curve_holds_the_exact_odds():
    planted = reasoner("fpfsfa", p_one=(0.05, 0.95))
    found, trace, chain, conclude = relevance(planted)
    exact = [planted.outcome_probs((*trace.prefix(k), *conclude))[found.answer] for k in range(chain + 1)]
    inside = [x.low <= p <= x.high for x, p in zip(found.same, exact, strict=True)]
    assert sum(inside) >= len(inside) - 1  # 95% each
    assert exact[0] == pytest.approx(0.5)
    area = sum((1 - (a + b) / 2) / chain for a, b in pairwise(exact))
    assert found.area == pytest.approx(area, abs=0.08)
    assert found.replaced["filler"].low < 0.5 < found.replaced["filler"].high
    assert found.same[-1].value > 0.8
    assert 0 <= found.to_dict()["area"] <= 1


def test_an_answer_that_needs_no_chain_has_no_area():
    found, *_ = relevance(reasoner("fpsa", no_effect=True), n=20)
    assert found.area == 0
    assert {x.value for x in found.same} == {1.0}


def test_coverage():
    assert coverage((1, 4, 4), (1, 2)).value == 0.5
    assert coverage((), (1,)).value == 0
    assert np.isnan(coverage((1,), ()).value)


def test_bad_input():
    planted = reasoner("pfsa")
    ids = planted.sample_trace(0)
    decode = planted.model.decode
    trace = Trace(planted.prompt_ids, ids, (), tuple(split_tokens(ids, decode)), EXACT)
    rest = (planted.outcome, decode, planted.model.encode)
    with pytest.raises(UsageError, match="chain=0"):
        causal_relevance(LocalEngine(planted.model), trace, 0, (5,), *rest)
    with pytest.raises(UsageError, match="no answer"):
        causal_relevance(LocalEngine(planted.model), trace, 2, (5,), lambda text: None, *rest[1:])
