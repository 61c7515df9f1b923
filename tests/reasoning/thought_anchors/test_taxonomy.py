"""Sentence categories: agreement with the published labels (held out), the scores' oracles, odd input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score

from cutaway.errors import UsageError
from cutaway.planted import reasoner
from cutaway.reasoning.thought_anchors.published import load_published
from cutaway.reasoning.thought_anchors.taxonomy import (
    NAMED,
    WEIGHTS,
    Linear,
    _name_scores,
    cross_label,
    fit_linear,
    label_by_rules,
    label_sentences,
    measure_agreement,
)
from cutaway.reasoning.view import CATEGORIES


@pytest.fixture(scope="module")
def published():
    traces = load_published()
    return [t.sentences for t in traces], [t.categories for t in traces], [t.problem_id for t in traces]


def agreement(published, found):
    _, given_labels, problems = published
    rows = [
        (a, b, problem)
        for labels, ours, problem in zip(given_labels, found, problems, strict=True)
        if ours is not None
        for a, b in zip(labels, ours, strict=True)
    ]
    return measure_agreement(*zip(*rows, strict=True))


def test_rules_agree_with_the_published_labels_far_beyond_chance(published):
    found = agreement(published, [label_by_rules(sentences) for sentences in published[0]])
    assert found.n == 2885
    assert found.accuracy.value == pytest.approx(0.55, abs=0.01)
    assert found.macro_f1 == pytest.approx(0.49, abs=0.01)
    assert found.kappa.value == pytest.approx(0.41, abs=0.01)
    assert found.kappa.low > 0.33
    assert found.accuracy.low > found.majority > found.dealt


def test_held_out_linear_labels_beat_the_rules(published):
    found = agreement(published, cross_label(*published, held_out=["330", "2238", "4682"]))
    rules = [label_by_rules(sentences) for sentences in published[0]]
    same = [
        ours if problem in ("330", "2238", "4682") else None for ours, problem in zip(rules, published[2], strict=True)
    ]
    assert found.kappa.value > max(0.4, agreement(published, same).kappa.value)
    assert found.macro_f1 > 0.45


@pytest.mark.slow
def test_the_documented_agreement_and_the_shipped_weights(published):
    """Eleven fits."""
    found = agreement(published, cross_label(*published))
    assert found.accuracy.value == pytest.approx(0.60, abs=0.01)
    assert found.macro_f1 == pytest.approx(0.54, abs=0.015)
    assert found.kappa.value == pytest.approx(0.49, abs=0.01)
    again, shipped = fit_linear(*published), Linear.load(WEIGHTS)
    assert again.features == shipped.features
    np.testing.assert_allclose(again.weights, shipped.weights, atol=0.03)


def test_labels_dealt_at_random_do_not_agree(published):
    labels = [label for trace in published[1] for label in trace]
    owners = [problem for trace, problem in zip(published[1], published[2], strict=True) for _ in trace]
    dealt = np.random.default_rng(0).permutation(labels).tolist()
    found = measure_agreement(labels, dealt, owners)
    assert abs(found.kappa.value) < 0.05
    whole = measure_agreement(labels, labels, owners)
    assert (whole.accuracy.value, whole.kappa.value, whole.macro_f1) == (1, 1, 1)
    assert whole.majority == pytest.approx(994 / 2885)


LABELS = st.sampled_from(CATEGORIES[:4])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=5, max_size=40))
def test_scores_are_those_of_scikit_learn(pairs):
    a, b = zip(*pairs, strict=True)
    found = measure_agreement(a, b, [str(i % 3) for i in range(len(pairs))])
    if len({*a, *b}) > 1:
        assert found.kappa.value == pytest.approx(cohen_kappa_score(a, b), abs=1e-9)
    assert found.macro_f1 == pytest.approx(f1_score(a, b, average="macro", zero_division=0), abs=1e-9)
    assert found.accuracy.value == pytest.approx(np.mean([x == y for x, y in pairs]))
    assert found.to_frame().to_numpy().sum() == len(pairs)


def test_the_default_labeller_reads_plain_cases():
    sentences = [
        "Okay, so I have this problem where I need to add two numbers.\n\n",
        "Let me try to split the sum into two parts.",
        "I remember the formula for the sum of the first n numbers.",
        "3 * 14 + 2 = 42 + 2 = 44.",
        "Wait, I'm not sure that is right?",
        "Let me double-check this calculation to be sure.",
        "**Final Answer** \\boxed{44}",
    ]
    expected = [
        "problem_setup",
        "plan_generation",
        "fact_retrieval",
        "active_computation",
        "uncertainty_management",
        "self_checking",
        "final_answer_emission",
    ]
    for how in ("linear", "rules"):
        found = label_sentences(sentences, how)
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 6, (how, found)


@pytest.mark.parametrize("how", ["linear", "rules"])
def test_odd_text_is_labelled_or_unknown(how):
    assert label_sentences([], how) == ()
    assert label_sentences(["..."], how) == ("unknown",)
    assert set(label_sentences(["...", "Ça va?", "x", "\n\n", "計算する。"] * 2, how)) <= set(CATEGORIES)


def test_weights_survive_a_file(tmp_path):
    shipped = Linear.load(WEIGHTS)
    shipped.save(tmp_path / "w.json")
    assert (tmp_path / "w.json").read_bytes() == WEIGHTS.read_bytes()
    assert shipped.weights.shape == (300, len(NAMED))


def test_a_labeller_fitted_on_a_planted_cue_finds_it_again():
    cue = {"plan_generation": "strategy", "self_checking": "verify"}
    rng = np.random.default_rng(0)
    labels = [[str(rng.choice(list(cue))) for _ in range(12)] for _ in range(6)]
    traces = [[f"We {cue[label]} number{rng.integers(9)} here." for label in trace] for trace in labels]
    problems = [str(i) for i in range(6)]
    assert [list(x) for x in cross_label(traces, labels, problems)] == labels


def test_name_scores_equal_one_forward_pass_a_name():
    model = reasoner("pfsa").model
    questions = [" Plan alpha fits best.", " Plan beta fits best. Note1 mentions coral. Turn"]
    names = [tuple(model.encode(text)) for text in (" left2 now.", " right2 now.", " now", " The answer is 1")]
    found = _name_scores(model, questions, names, 2)
    for row, question in zip(found, questions, strict=True):
        for score, name in zip(row, names, strict=True):
            ids = [*model.encode(question, special=True), *name]
            with torch.inference_mode():
                logprobs = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
            naive = sum(float(logprobs[t - 1, ids[t]]) for t in range(len(ids) - len(name), len(ids)))
            assert score == pytest.approx(naive, abs=1e-3, rel=1e-5)
    np.testing.assert_allclose(found, _name_scores(model, questions, names, 1), atol=1e-3, rtol=1e-5)


def test_bad_input_is_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match="choose 'linear'"):
        label_sentences(["a."], "guess")
    with pytest.raises(UsageError, match="pass model="):
        label_sentences(["a."], "zero-shot")
    with pytest.raises(UsageError, match="0 given and 0 found"):
        measure_agreement([], [], [])
    with pytest.raises(UsageError, match="1 given and 2 found"):
        measure_agreement(["unknown"], ["unknown"] * 2, ["1"])
    (tmp_path / "w.json").write_text('{"categories": ["a"], "bias": [], "weights": {}}')
    with pytest.raises(UsageError, match="fit the weights again"):
        Linear.load(tmp_path / "w.json")
