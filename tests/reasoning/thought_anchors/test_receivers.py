"""Receiver heads: scores by loops, planted heads found, none found in the null, and heads zeroed where they are."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, rankdata
from tiny_models import FAMILIES, tiny

from cutaway.errors import UsageError
from cutaway.model import Mask, Replace
from cutaway.planted.receiver import Receiver, receiver
from cutaway.reasoning.attention import span_attention
from cutaway.reasoning.thought_anchors.ablation import head_ablation, zeroed
from cutaway.reasoning.thought_anchors.receivers import receiver_heads, vertical_scores
from cutaway.reasoning.view import TraceView
from cutaway.sampling import LocalEngine, Settings, Trace

EXACT = Settings(temperature=1.0, top_p=1.0, max_tokens=1)


@pytest.fixture(scope="module")
def planted() -> Receiver:
    return receiver()


def matrix(n: int, seed: int = 0) -> np.ndarray:
    return np.tril(np.random.default_rng(seed).random((2, 3, n, n)))


def test_vertical_scores_by_loops() -> None:
    given = matrix(9)
    found = vertical_scores(given)
    for k in range(9):
        far = [given[1, 2, q, k] for q in range(k + 4, 9)]
        np.testing.assert_allclose(found[1, 2, k], np.mean(far) if far else np.nan, atol=1e-12)


def test_depth_ranks_by_scipy() -> None:
    given = matrix(26)
    given[..., 22, 0] = given[..., 22, 1]  # a tie
    far = np.tril(np.ones((26, 26)), -20).astype(bool)
    rows = np.where(far, given, np.nan)
    ranks = rankdata(rows, axis=-1, nan_policy="omit") / np.maximum(far.sum(-1), 1)[:, None]
    found = vertical_scores(given, 20, depth_rank=True)
    for k in range(6):
        np.testing.assert_allclose(found[..., k], ranks[..., k + 20 :, k].mean(-1), atol=1e-12)
    assert np.isnan(found[..., 6:]).all()


def test_head_scores_are_scipy_kurtosis_averaged_over_traces(planted: Receiver) -> None:
    traces = [planted.trace(seed, 8 + seed) for seed in range(3)]
    found = receiver_heads(planted.model, traces, top=3)
    expected = []
    for trace in traces:
        spans = [(5 + a, 5 + b) for a, b in trace.spans]
        scores = vertical_scores(span_attention(planted.model, (*trace.prompt, *trace.ids), spans).numpy())
        expected.append(kurtosis(scores, axis=-1, nan_policy="omit"))
    np.testing.assert_allclose(found.kurtosis[1:], np.mean(expected, 0)[1:], rtol=1e-6)
    assert np.isnan(found.kurtosis[0]).all()
    assert np.isnan(found.reliability.value)  # three traces make no two halves


@pytest.mark.parametrize("seed", range(4))
def test_planted_heads_are_found(seed: int) -> None:
    heads = ((1, seed % 4), (2, (seed + 1) % 4), (2, (seed + 3) % 4))
    model = receiver(heads, seed=seed)
    traces = [model.trace(100 * seed + i) for i in range(8)]
    found = receiver_heads(model.model, traces, top=3)
    assert set(found.heads) == set(model.truth.heads)
    assert set(model.truth.heads) <= set(found.certified)
    assert found.reliability.value > 0.95
    assert found.selected.low > 5
    for trace, scores, others in zip(traces, found.scores, found.others, strict=True):
        assert int(np.nanargmax(scores)) == model.plan_sentence(trace)
        assert np.nanmax(scores) > 5 * others[model.plan_sentence(trace)]


@pytest.mark.parametrize("seed", range(4))
def test_uniform_attention_has_no_receivers(seed: int) -> None:
    null = receiver(null=True, seed=seed)
    found = receiver_heads(null.model, [null.trace(50 * seed + i) for i in range(8)], top=3)
    assert found.certified == ()
    assert abs(found.selected.value) < 0.01
    np.testing.assert_allclose(found.per_trace[:, 1:] - found.uniform[:, None, None], 0, atol=1e-3)


def test_traces_that_cannot_be_scored_are_named(planted: Receiver) -> None:
    model = planted.model
    long = planted.trace(0)
    long = Trace(long.prompt, long.ids * 6, (), tuple((20 * i, 20 * i + 20) for i in range(20)), long.settings)
    short = planted.trace(1)
    short = Trace(short.prompt, short.ids, (), short.spans[:5], short.settings)
    found = receiver_heads(model, [planted.trace(0), short, long], top=3)
    assert found.undefined[0] == ""
    assert "5 sentences" in found.undefined[1]
    assert "exceed the model's context" in found.undefined[2]
    assert np.isnan(found.per_trace[1]).all()
    (track,) = found.tracks(1)
    assert set(track.value) == {None}
    assert "5 sentences" in track.undefined[0]
    with pytest.raises(UsageError, match="no usable trace: 5 sentences"):
        receiver_heads(model, [short], top=3)
    with pytest.raises(UsageError, match="needs at least 22"):
        receiver_heads(model, [planted.trace(0)], top=3, rule="later_20_depth_rank")
    with pytest.raises(UsageError, match="top=8"):
        receiver_heads(model, [planted.trace(0)], top=8)


def test_the_later_rule_ranks_what_each_row_sees(planted: Receiver) -> None:
    trace = planted.trace(0, 40)
    found = receiver_heads(planted.model, [trace], top=7, rule="later_20_depth_rank")
    (scores,) = found.by_head
    assert np.isfinite(scores[:, :20]).all()
    assert np.isnan(scores[:, 20:]).all()
    for head in set(found.heads) & set(planted.truth.heads):
        row = scores[found.heads.index(head)]
        assert row[planted.plan_sentence(trace)] == np.nanmax(row) == 1.0


def test_ctrl_c_keeps_the_traces_done(planted: Receiver) -> None:
    def stop(done: int, planned: int, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    found = receiver_heads(planted.model, [planted.trace(s) for s in range(5)], top=3, report=stop)
    assert not found.complete
    assert found.undefined == ("", "", "interrupted", "interrupted", "interrupted")
    assert set(found.heads) == set(planted.truth.heads)


def test_tracks_frame_and_json(planted: Receiver, tmp_path) -> None:
    trace = planted.trace(0)
    found = receiver_heads(planted.model, [planted.trace(s) for s in range(4)], top=3)
    tracks = found.tracks(0, study="x")
    view = TraceView("t", "p", trace.texts(planted.model.decode), "north", tracks=tracks)
    TraceView.from_dict(json.loads(json.dumps(view.to_dict())))
    best = planted.plan_sentence(trace)
    assert tracks[0].low[best] <= tracks[0].value[best] <= tracks[0].high[best]
    assert tracks[0].value[-1] is None
    assert "follow" in tracks[0].undefined[-1]
    assert tracks[0].control[best] == pytest.approx(found.others[0][best])
    assert tracks[0].control[best] < tracks[0].low[best]
    found.save(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["kurtosis"][0] == [None] * 4
    assert [tuple(each) for each in read["heads"]] == list(found.heads)
    frame = found.to_frame()
    assert len(frame) == 8
    assert int(frame["certified"].sum()) == len(found.certified)
    assert "3 heads from 4 traces" in repr(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_all_heads_is_zeroing_attention_but_for_its_bias(family: str) -> None:
    """Acceptance 6."""
    model = tiny(family)
    rows = [[5, 9, 14, 22, 31, 8, 17]]
    for layer in range(model.n_layers):
        projection = model.layout.attn(layer).get_submodule(model.layout.shape.o)
        bias = getattr(projection, "bias", None)
        with torch.no_grad():
            if bias is not None:
                bias.normal_()
        (edit,) = zeroed([(layer, head) for head in range(model.n_heads)])
        with model.edited(edit):
            found = model.capture(rows, [f"attn_out.{layer}", "logits"])
        nothing = torch.zeros(model.d_model) if bias is None else bias
        torch.testing.assert_close(found[f"attn_out.{layer}"][0], nothing.expand(7, -1), atol=1e-7, rtol=0)
        with model.edited(Replace(f"attn_out.{layer}", nothing)):
            torch.testing.assert_close(found["logits"], model.capture(rows, "logits")["logits"], atol=1e-5, rtol=1e-5)


def test_zeroed_groups_heads_by_layer() -> None:
    assert zeroed([(2, 1), (1, 0), (2, 3)]) == [Mask("z.1", [0]), Mask("z.2", [1, 3])]


def test_ablating_receivers_loses_the_plan_and_random_heads_do_not(planted: Receiver) -> None:
    trace = planted.trace(0)
    asked = [planted.question(trace, step) for step in planted.steps(trace)[:3]]
    found = head_ablation(
        LocalEngine(planted.model),
        [ids for ids, _ in asked],
        lambda i, text: text == asked[i][1],
        planted.truth.heads,
        settings=EXACT,
        n=40,
        random_sets=12,
    )
    assert found.intact > 0.95
    assert found.ablated < 0.5  # chance is a quarter
    assert found.effect.high < -0.4
    assert min(found.random) > 0.9
    assert found.p == 1 / (1 + len(found.random))
    assert found.n == 120
    assert json.loads(json.dumps(found.to_dict()))["random"] == list(found.random)
    with pytest.raises(UsageError, match="too few are left"):
        head_ablation(
            LocalEngine(planted.model), [asked[0][0]], lambda i, text: True, [(1, 0), (1, 1), (1, 2)], settings=EXACT
        )
