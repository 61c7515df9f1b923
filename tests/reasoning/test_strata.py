"""Strata and certification: algebra, exact mixtures, forced exits, and the unbiasedness of reuse."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from planted_traces import exact_curve, exact_leaving, exact_probs, own_answer, planted, trace_of
from scipy.stats import chisquare

from cutaway.reasoning.thought_anchors.certify import judge, pair_blocks, self_comparison
from cutaway.reasoning.thought_anchors.strata import Strata, build_strata
from cutaway.sampling import LocalEngine, Settings, Trace


@st.composite
def token_odds(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int]]]:
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=7))
    edges = np.cumsum([0, *lengths])
    odds = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-12, 1 - 1e-12]))
    probs = draw(st.lists(odds, min_size=int(edges[-1]), max_size=int(edges[-1])))
    return probs, [(int(a), int(b)) for a, b in itertools.pairwise(edges)]


@budget(max_examples=200, deadline=None)
@given(token_odds(), st.integers(0, 10**6))
def test_weights_are_a_mixture_and_obey_the_recursion(odds, seed):
    probs, spans = odds
    strata = build_strata(range(len(probs)), spans, probs)
    np.testing.assert_allclose(strata.weights.sum(1) + strata.terminal, 1.0)
    assert (strata.weights >= 0).all()
    assert (np.tril(strata.weights, -1) == 0).all()
    w = np.random.default_rng(seed).random(strata.n)
    v = strata.weights @ w + strata.terminal
    stay = np.array([np.prod(probs[a:b]) for a, b in spans])
    np.testing.assert_allclose(strata.stay, stay)
    np.testing.assert_allclose(v[:-1], stay * v[1:] + (1 - stay) * w)
    assert v[-1] == 1
    assert strata.exits is not None
    for edges, stays in zip(strata.exits, stay, strict=True):
        assert edges[-1] == pytest.approx(1 - stays, abs=1e-12)
        assert (np.diff(edges) >= 0).all()


def test_free_draws_have_no_exits_and_the_identity_for_weights():
    strata = build_strata(range(6), [(0, 2), (2, 6)], None)
    assert strata.exits is None
    assert strata.weights.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert strata.terminal.tolist() == [0, 0, 1]
    request = strata.request((9,), 1, 0, 0, Settings(max_tokens=6))
    assert (request.prefix, request.ban_first, request.settings.max_tokens) == ((9, 0, 1), None, 4)


@pytest.mark.parametrize(("layout", "seed"), [("pfsa", 0), ("pfsa", 1), ("ffpfsfsfa", 2), ("wpsfa", 5)])
def test_exact_strata_reproduce_the_exact_curve(layout, seed):
    source = planted(layout)
    trace = trace_of(source, seed)
    inside, truth = exact_leaving(source, trace), exact_curve(source, trace)
    exact = build_strata(trace.ids, trace.spans, exact_probs(source, trace))
    np.testing.assert_allclose(exact.weights @ inside + exact.terminal, truth, atol=1e-6)
    probs = LocalEngine(source.model).token_probs(trace.prompt, trace.ids, trace.settings)
    measured = build_strata(trace.ids, trace.spans, probs)
    np.testing.assert_allclose(measured.weights @ inside + measured.terminal, truth, atol=1e-6)


def strata_of(source, seed: int) -> tuple[Trace, Strata]:
    trace = trace_of(source, seed)
    return trace, build_strata(trace.ids, trace.spans, exact_probs(source, trace))


def test_requests_are_a_pure_function_of_their_arguments():
    trace, strata = strata_of(planted("ffpfsfsfa"), 1)
    ask = [strata.request(trace.prompt, i, k, 7, trace.settings) for i in range(9) for k in range(20)]
    again = [strata.request(trace.prompt, i, k, 7, trace.settings) for i in range(9) for k in range(20)]
    assert ask == again
    assert len({request.seeds for request in ask}) == len(ask)
    other = [strata.request(trace.prompt, i, k, 8, trace.settings) for i in range(9) for k in range(20)]
    assert not {r.seeds for r in ask} & {r.seeds for r in other}
    for request in ask:
        at = len(request.prefix) - len(trace.prompt)
        assert request.prefix == (*trace.prompt, *trace.ids[:at])
        assert request.ban_first == trace.ids[at]
        assert len(request.prefix) - len(trace.prompt) + request.settings.max_tokens == trace.settings.max_tokens


def test_forced_exits_fall_where_predicted():
    trace, _ = strata_of(planted("pfsa"), 3)
    # A sentence with several open places: odds chosen by hand, exits by brute force.
    probs = np.tile([0.7, 1.0, 0.4, 0.9], len(trace.ids))[: len(trace.ids)]
    strata = build_strata(trace.ids, [(0, 5), (5, len(trace.ids))], probs.tolist())
    n = 4000
    for i, (start, end) in enumerate(strata.spans):
        exits = [len(strata.request((1,), i, k, 0, trace.settings).prefix) - 1 for k in range(n)]
        expected = np.array([np.prod(probs[start:t]) * (1 - probs[t]) for t in range(start, end)])
        seen = np.bincount(np.array(exits) - start, minlength=end - start)
        kept = expected > 0
        assert seen[~kept].sum() == 0
        assert chisquare(seen[kept], n * expected[kept] / expected.sum()).pvalue > 0.001


def test_rollouts_that_leave_have_the_exact_odds_and_do_leave():
    source = planted("pfsa")
    trace, strata = strata_of(source, 0)
    inside, own, n = exact_leaving(source, trace), own_answer(source, trace), 400
    engine, sentences = LocalEngine(source.model, 256), (0, 1, 3)
    requests = [strata.request(trace.prompt, i, k, 0, trace.settings) for i in sentences for k in range(n)]
    hits = np.zeros(len(requests))
    for index, rollout in engine.stream(requests):
        whole = (*requests[index].prefix, *rollout.ids)[len(trace.prompt) :]
        start, end = trace.spans[sentences[index // n]]
        assert whole[:start] == trace.ids[:start]
        assert whole[start:end] != trace.ids[start:end]
        hits[index] = source.outcome(source.model.decode(whole)) == own
    for i, share in zip(sentences, hits.reshape(-1, n).mean(1), strict=True):
        assert abs(share - inside[i]) <= 4 * np.sqrt(inside[i] * (1 - inside[i]) / n) + 1e-9


def reuse_errors(n_traces: int, layout: str, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors [trace boundary] of the mixture estimate with forced exits and with free draws at each boundary."""
    source = planted(layout, 0.3, 0.7)
    engine, out = LocalEngine(source.model, 512), []
    traces = [trace_of(source, seed) for seed in range(n_traces)]
    for reuse in (True, False):
        errors = []
        for seed, trace in enumerate(traces):
            probs = exact_probs(source, trace) if reuse else None
            strata = build_strata(trace.ids, trace.spans, probs)
            own = own_answer(source, trace)
            open_ = [i for i in range(strata.n) if strata.stay[i] < 1]
            requests = [strata.request(trace.prompt, i, k, seed, trace.settings) for i in open_ for k in range(draws)]
            hits = np.zeros(strata.n)
            for index, rollout in engine.stream(requests):
                whole = (*requests[index].prefix, *rollout.ids)
                hits[open_[index // draws]] += source.outcome(source.model.decode(whole)) == own
            errors.append(strata.weights @ (hits / draws) + strata.terminal - exact_curve(source, trace))
        out.append(np.array(errors)[:, :-1])
    return out[0], out[1]


def assert_unbiased(errors: np.ndarray, sigmas: float = 3) -> None:
    """Mean error of each boundary and of all, in standard errors over traces (which are independent)."""
    for each in (*errors.T, errors.mean(1)):
        assert abs(each.mean()) <= sigmas * max(each.std(ddof=1) / np.sqrt(len(each)), 1e-9)


def test_reuse_is_unbiased_and_agrees_with_free_draws():
    reused, free = reuse_errors(80, "pfsa", draws=2)
    assert_unbiased(reused)
    assert_unbiased(free)
    assert_unbiased(reused - free)
    assert (reused**2).mean() < (free**2).mean()


@pytest.mark.slow
def test_reuse_is_unbiased_over_ten_thousand_boundaries():
    reused, free = reuse_errors(2000, "pfsfa", draws=2)
    assert reused.size == 10_000
    assert_unbiased(reused)
    assert_unbiased(free)
    assert_unbiased(reused - free)


def small_strata(stay: list[float]) -> Strata:
    return build_strata(range(len(stay)), [(i, i + 1) for i in range(len(stay))], stay)


def test_blocks_pair_draws_and_wait_for_the_stratum_that_lacks_one():
    strata = small_strata([0.0, 0.0, 0.5])  # V_1 = W_1, V_2 = W_2 / 2 + 1 / 2
    blocks = pair_blocks(strata, 0, [[True, False, True], [False, True], []], seed=0)
    assert (blocks.x, blocks.y, blocks.waits_for) == ((True, False), (False, True), 1)
    full = pair_blocks(strata, 0, [[True, False, True], [False, True, True, False], []], seed=0)
    assert (full.x, full.y, full.waits_for) == ((True, False, True), (False, True, True), None)
    assert pair_blocks(strata, 2, [[], [], [False] * 4], seed=0).y == (True,) * 4
    waiting = pair_blocks(strata, 1, [[], [True] * 50, []], seed=0)
    assert waiting.waits_for == 2
    assert all(waiting.y)


def test_blocks_pick_strata_by_the_known_mixture_and_use_draws_in_order():
    strata, n = small_strata([0.3, 0.5, 0.2, 0.6]), 3000

    def picks(stratum: int) -> np.ndarray:
        """Blocks that drew from the stratum, or ended with the trace (stratum 4)."""
        return np.array(pair_blocks(strata, 0, [[i == stratum] * n for i in range(4)], seed=4).y)

    end = picks(4)
    which = [picks(i) & ~end for i in range(4)] + [end]
    assert (np.sum(which, axis=0) == 1).all()
    seen, expected = np.sum(which, axis=1), np.append(strata.weights[1], strata.terminal[1]) * n
    assert seen[0] == 0
    assert chisquare(seen[1:], expected[1:]).pvalue > 0.001
    bits = (np.random.default_rng(5).random((4, n)) < 0.5).tolist()
    blocks = pair_blocks(strata, 0, bits, seed=4)
    for i in range(1, 4):
        assert np.array(blocks.y)[which[i]].tolist() == bits[i][: seen[i]]
    assert pair_blocks(strata, 0, [draws[:40] for draws in bits], seed=4).y == blocks.y[:40]


def test_verdicts_on_clear_effects_no_effects_and_nothing():
    rng = np.random.default_rng(0)
    strata = small_strata([0.0, 0.1, 0.95, 1.0])
    outcomes = [(rng.random(400) < p).tolist() for p in (0.05, 1.0, 1.0, 0.5)]
    verdicts = judge(strata, outcomes, seed=0, delta=0.2, fdr=0.05, level=0.95)
    assert verdicts.status == ("anchor", "no effect", "no effect", "no effect")
    assert verdicts.log_e[0] > 10
    assert judge(strata, [[], [], [], []], 0, 0.2, 0.05, 0.95).status == ("undecided",) * 2 + ("no effect",) * 2
    assert judge(strata, [[], [], [], []], 0, 0.2, 0.05, 0.95).wanted[0] == 0


def test_false_certifications_are_rare_when_all_strata_are_alike():
    strata, rng = small_strata([0.2, 0.4, 0.0, 0.3, 0.1]), np.random.default_rng(3)
    false = 0
    for seed in range(25):
        outcomes = [(rng.random(60) < 0.5).tolist() for _ in range(5)]
        status = judge(strata, outcomes, seed, 0.2, 0.05, 0.95).status
        # The third sentence is never repeated, so the certain end of the text touches none before it.
        false += "anchor" in status[:2]
    assert false <= 4


def test_self_comparison_is_silent_unless_draws_drift():
    rng = np.random.default_rng(1)
    strata = small_strata([0.1] * 6)
    steady = [(rng.random(200) < p).tolist() for p in (0.0, 0.1, 0.5, 0.7, 0.99, 1.0)]
    assert self_comparison(strata, steady, 0.05) == 0
    assert self_comparison(strata, [[], [True], *steady[2:]], 0.05) == 0
    assert self_comparison(strata, [[True] * 60 + [False] * 60, *steady[1:]], 0.05) == 1
