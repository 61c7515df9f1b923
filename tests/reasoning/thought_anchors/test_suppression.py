"""Suppression against whole forwards with the keys removed, its divergence against dictionaries, and planted links."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny

from cutaway.errors import UsageError
from cutaway.model import AttentionMask, Model
from cutaway.planted.receiver import Receiver, receiver
from cutaway.reasoning.thought_anchors.nucleus import nucleus_kl
from cutaway.reasoning.thought_anchors.suppression import SuppressionMatrix, suppression_matrix
from cutaway.reasoning.view import TraceView
from cutaway.sampling import Settings, Trace

IDS = tuple(torch.randint(3, 61, (34,), generator=torch.Generator().manual_seed(2)).tolist())
SPANS = ((0, 4), (4, 5), (5, 14), (14, 17), (17, 22), (22, 29))


def a_trace(prompt: int = 5) -> Trace:
    return Trace(IDS[:prompt], IDS[prompt : prompt + 29], (), SPANS, Settings())


def naive_kl(base: np.ndarray, other: np.ndarray, nucleus: float, most: int, published: bool) -> float:
    sides, kept = [], []
    for logits in (base, other):
        x = logits.astype(np.float64) / 0.6
        p = np.exp(x - x.max())
        p /= p.sum()
        order, mass, inside = np.argsort(-p, kind="stable"), 0.0, []
        for token in order[:most]:
            if mass >= nucleus:
                break
            inside.append(int(token))
            mass += p[token]
        sides.append(p)
        kept.append(inside)
    union = sorted({*kept[0], *kept[1]})
    if published:
        dists = []
        for logits, inside in zip((base, other), kept, strict=True):
            x = np.array([logits[t] if t in inside else -1e9 for t in union], dtype=np.float64) / 0.6
            shifted = x - x.max()
            dists.append(shifted - math.log(np.exp(shifted).sum()))
        return sum(math.exp(a) * (a - b) for a, b in zip(*dists, strict=True) if math.exp(a) > 0)
    p, q = ([*side[union], np.delete(side, union).sum()] for side in sides)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0 and b > 0)


@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(0.1, 8.0),
    change=st.floats(0.0, 3.0),
    most=st.sampled_from([3, 10, 100]),
    published=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_divergence_by_dictionaries(seed: int, scale: float, change: float, most: int, published: bool) -> None:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(3, 150)) * scale
    other = base + rng.normal(size=base.shape) * change
    rule = "published" if published else "union and rest"
    found = nucleus_kl(torch.tensor(base), torch.tensor(other), most=most, divergence=rule)
    for row in range(3):
        expected = naive_kl(base[row], other[row], 0.9999, most, published)
        assert float(found[row]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_divergence_in_fp32_has_no_rounding_of_its_own() -> None:
    rng = np.random.default_rng(0)
    base = torch.tensor(rng.normal(size=(64, 5000)) * 4, dtype=torch.float32)
    small = torch.tensor(rng.normal(size=base.shape) * 1e-3, dtype=torch.float32)
    exact = nucleus_kl(base.double(), (base + small).double())
    torch.testing.assert_close(nucleus_kl(base, base + small), exact, rtol=2e-3, atol=1e-9)
    assert float(nucleus_kl(base, base).max()) < 1e-10
    whole = (base.double() / 0.6).log_softmax(-1)
    full = (whole.exp() * (whole - ((base + small).double() / 0.6).log_softmax(-1))).sum(-1)
    assert bool((exact <= full + 1e-12).all())  # lumping tokens together only loses


def test_missing_tokens_are_finite_here_and_near_twenty_as_published() -> None:
    base, other = torch.zeros(1, 200), torch.zeros(1, 200)
    base[0, 0], other[0, 1] = 60.0, 60.0
    assert 50 < float(nucleus_kl(base, other)) < 150
    assert math.log(float(nucleus_kl(base, other, divergence="published"))) > 20


def expected_cells(model: Model, trace: Trace, rule: str, shift: str) -> np.ndarray:
    """One whole forward for each source; nothing is reused."""
    ids = torch.tensor([[*trace.prompt, *trace.ids]])
    base = model.hf(ids).logits[0]
    n, start = trace.n_sentences, len(trace.prompt)
    out = np.full((n, n), np.nan)
    for source, (a, b) in enumerate(trace.spans[:-1]):
        with model.edited(AttentionMask(keys=range(start + a, start + b))):
            masked = model.hf(ids).logits[0]
        assert torch.equal(masked[: start + a], base[: start + a])  # acceptance 5: earlier positions, exactly
        kl = nucleus_kl(base, masked, divergence=rule)
        for target in range(source + 1, n):
            at = torch.arange(*trace.spans[target]) + start - (1 if shift == "next token" else 0)
            out[target, source] = (kl[at] + 1e-9).log().mean()
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_cells_equal_whole_eager_runs_with_the_keys_removed(family: str) -> None:
    """Acceptance 5: 4-D masks, positions kept, eager attention, no cache, one row."""
    trace = a_trace()
    found = suppression_matrix(tiny(family), trace, controls=0)
    expected = expected_cells(tiny(family, "eager"), trace, "union and rest", "next token")
    np.testing.assert_allclose(found.log_kl, expected, atol=2e-3)
    earlier = np.tril(np.ones_like(expected), -1).astype(bool)
    assert np.isfinite(found.log_kl[earlier]).all()
    assert np.isnan(found.log_kl[~earlier]).all()


@pytest.mark.parametrize("rule", ["union and rest", "published"])
@pytest.mark.parametrize("shift", ["next token", "published"])
def test_published_rules_by_name(rule: str, shift: str) -> None:
    trace = a_trace()
    found = suppression_matrix(tiny("llama"), trace, controls=0, divergence=rule, shift=shift)
    np.testing.assert_allclose(found.log_kl, expected_cells(tiny("llama"), trace, rule, shift), atol=2e-3)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_how_many_share_a_pass_changes_nothing(rows: int) -> None:
    model, trace = tiny("gemma3"), a_trace()
    one, many = (suppression_matrix(model, trace, rows=each, controls=2) for each in (4, rows))
    np.testing.assert_allclose(one.log_kl, many.log_kl, atol=2e-3)
    np.testing.assert_allclose(one.control_log_kl, many.control_log_kl, atol=2e-3)


@pytest.mark.parametrize(("family", "prompt", "blind"), [("llama", 5, ()), ("llama", 0, (0,)), ("mistral", 5, (2,))])
def test_sources_that_leave_nothing_to_attend_to_are_named(family: str, prompt: int, blind: tuple[int, ...]) -> None:
    found = suppression_matrix(tiny(family), a_trace(prompt), controls=0)
    assert found.blind == blind
    expected = expected_cells(tiny(family), a_trace(prompt), "union and rest", "next token")
    np.testing.assert_allclose(found.log_kl, expected, atol=2e-3)


def test_centring_and_both_directions() -> None:
    found = suppression_matrix(tiny("llama"), a_trace(), controls=0)
    for target in range(1, 6):
        row = found.log_kl[target, :target]
        np.testing.assert_allclose(found.centred[target, :target], row - row.mean())
    best, effect = found.depends_on(5)[0]
    assert effect == np.nanmax(found.centred[5])
    assert dict(found.effects_of(best))[5] == effect
    assert found.depends_on(0) == ()
    assert found.effects_of(5) == ()


@pytest.fixture(scope="module")
def planted() -> tuple[Receiver, Trace, SuppressionMatrix]:
    model = receiver()
    trace = model.trace(0)
    return model, trace, suppression_matrix(model.model, trace, controls=3)


@pytest.mark.parametrize("seed", range(4))
def test_steps_are_linked_to_the_plan(seed: int) -> None:
    model = receiver(seed=seed)
    trace = model.trace(seed)
    found = suppression_matrix(model.model, trace, controls=3, seed=seed)
    plan = model.plan_sentence(trace)
    for step in model.steps(trace):
        assert found.depends_on(step)[0][0] == plan
        if step > 4:  # with few earlier sentences the row's mean is itself mostly the plan's effect
            assert found.depends_on(step)[0][1] > 3
    linked = {(a, b) for a, b, _ in found.links().links}
    assert {(plan, step) for step in model.steps(trace)} <= linked
    strongest = sorted(found.links(top=1).links, key=lambda link: -link[2])[: len(model.steps(trace)) // 2]
    assert all(source == plan for source, _, _ in strongest)


def test_no_link_beyond_chance_in_the_null() -> None:
    small = []
    for seed in range(4):
        model = receiver(null=True, seed=seed)
        found = suppression_matrix(model.model, model.trace(seed), controls=3, seed=seed)
        p = found.p_values
        small.append(np.mean(p[np.isfinite(p)] <= 0.05))
    assert np.mean(small) < 0.1


def test_p_values_count_matched_controls() -> None:
    rng = np.random.default_rng(0)
    spans = tuple((5 * i, 5 * i + 5) for i in range(12))
    control_spans = tuple((a, a + 5) for a in rng.integers(0, 50, 60).tolist())
    log_kl, control = np.full((12, 12), np.nan), np.full((12, 60), np.nan)
    for target in range(12):
        for source in range(target):
            log_kl[target, source] = rng.normal() - 0.3 * math.log1p(5 * (target - source - 1))
        for i, (_, end) in enumerate(control_spans):
            if end <= 5 * target:
                control[target, i] = rng.normal() - 0.3 * math.log1p(5 * target - end)
    log_kl[10, 3] = 30.0
    found = SuppressionMatrix(spans, log_kl, control_spans, control, (), 0.6, "union and rest", "next token")
    p = found.p_values
    assert p[10, 3] == np.nanmin(p)
    assert p[10, 3] < 0.01
    others = np.delete(p, 10, axis=0)
    others = others[np.isfinite(others)]
    assert 0.35 < others.mean() < 0.65
    assert [link[:2] for link in found.links(top=1, alpha=0.005).links if link[2] > 10] == [(3, 10)]


def test_links_tracks_frame_and_json(planted: tuple[Receiver, Trace, SuppressionMatrix], tmp_path) -> None:
    model, trace, found = planted
    texts = trace.texts(model.model.decode)
    view = TraceView("t", "p", texts, "north", tracks=found.tracks("x"), links=(found.links(study="x"),))
    TraceView.from_dict(json.loads(json.dumps(view.to_dict())))
    effect, rest = found.tracks()
    plan = model.plan_sentence(trace)
    assert max((x, i) for i, x in enumerate(effect.value) if x is not None)[1] == plan
    assert effect.value[-1] is None
    assert rest.value[0] is None
    frame = found.to_frame()
    assert len(frame) == 190
    best = frame.loc[frame["centred"].idxmax()]
    assert int(best["source"]) == plan
    found.save(tmp_path / "m.json")
    read = json.loads((tmp_path / "m.json").read_text())
    assert read["log_kl"][0] == [None] * 20
    assert read["log_kl"][19][0] == pytest.approx(found.log_kl[19, 0])
    assert "20 sentences, 57 controls" in repr(found)


def test_controls_have_the_sentences_lengths(planted: tuple[Receiver, Trace, SuppressionMatrix]) -> None:
    _, trace, found = planted
    lengths = [b - a for a, b in trace.spans[:-1] for _ in range(3)]
    assert [b - a for a, b in found.control_spans] == lengths
    assert all(a >= 0 and b <= trace.spans[-1][0] for a, b in found.control_spans)
    for i, (_, end) in enumerate(found.control_spans):
        measured = [bool(np.isfinite(x)) for x in found.control_log_kl[:, i]]
        assert measured == [start >= end for start, _ in trace.spans]


def test_ctrl_c_keeps_what_is_done() -> None:
    def stop(done: int, planned: int, note: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    found = suppression_matrix(tiny("llama"), a_trace(), rows=2, controls=0, report=stop)
    assert not found.complete
    assert np.isfinite(found.log_kl[5]).sum() == 4
    effect, _ = found.tracks()
    assert effect.undefined[4] == "not run"


def test_bad_input() -> None:
    model = tiny("llama")
    one = Trace(IDS[:5], IDS[5:9], (), ((0, 4),), Settings())
    with pytest.raises(UsageError, match="1 sentences"):
        suppression_matrix(model, one)
    with pytest.raises(UsageError, match="controls=-1"):
        suppression_matrix(model, a_trace(), controls=-1)
    with pytest.raises(UsageError, match="run with controls=1"):
        suppression_matrix(model, a_trace(), controls=0).links()
    long = Trace(IDS[:5], IDS * 3, (), SPANS, Settings())
    with pytest.raises(UsageError, match="exceed the context"):
        suppression_matrix(model, long)
