"""The published traces are whole, and every number that can be derived from them is derived again."""

import json
from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import CutawayError, UsageError
from cutaway.reasoning.embedding import load_embedder
from cutaway.reasoning.thought_anchors.published import COLUMNS, counts_of, find_published, load_published
from cutaway.reasoning.thought_anchors.recomputed import (
    TABLE,
    category_contrast,
    category_table,
    identity_agreement,
    matrix_agreement,
    mean_number,
    neighbour_tests,
    published_findings,
    recompute_different,
    recompute_overdeterminedness,
    recompute_resampling,
)
from cutaway.reasoning.view import CATEGORIES, TraceView

PRINTED = {
    "active_computation": (0.345, 0.156, 0.209, 3.131, 0.044),
    "fact_retrieval": (0.170, 0.290, 0.288, 1.634, 0.051),
    "plan_generation": (0.148, 0.568, 0.578, 1.063, 0.053),
    "uncertainty_management": (0.127, 0.263, 0.263, 0.803, 0.045),
    "result_consolidation": (0.108, 0.175, 0.208, 2.103, 0.033),
    "self_checking": (0.071, 0.106, 0.101, 0.355, 0.026),
    "problem_setup": (0.018, 0.362, 0.460, 3.131, 0.071),
    "final_answer_emission": (0.014, 0.020, 0.009, 0.001, 0.002),
}
"""Share; counterfactual, resampling and forced KL; mean absolute counterfactual accuracy difference."""


@pytest.fixture(scope="module")
def traces():
    return load_published()


@pytest.fixture(scope="module")
def with_replacements(traces):
    return [trace for trace in traces if trace.replacements is not None]


def test_twenty_whole_traces(traces):
    assert len(traces) == 20
    assert len({trace.problem_id for trace in traces}) == 10
    assert sum(len(trace.sentences) for trace in traces) == 2885
    for trace in traces:
        assert trace.prompt.endswith("<think>\n")
        assert trace.ending.startswith("</think>")
        assert all(sentence.strip() for sentence in trace.sentences)
        assert set(trace.categories) <= set(CATEGORIES)
        assert all(source < i for i, named in enumerate(trace.depends_on) for source in named)
        assert set(trace.numbers) == set(COLUMNS)


def test_a_sentence_is_as_long_as_the_published_one(traces):
    place = Path(__file__).parents[3] / "data" / "thought-anchors" / "accuracy.json"
    columns = json.loads(place.read_text())
    same = total = 0
    for trace in traces:
        for sentence, characters in zip(trace.sentences, columns[trace.name]["characters"], strict=True):
            # The published split joins merged fragments with one space, so inner white space may differ.
            same += len(" ".join(sentence.split())) <= characters <= len(sentence)
            total += 1
    assert same == total


def test_resampling_importance_is_the_difference_of_neighbouring_accuracies(traces):
    rows = 0
    for trace in traces:
        again = recompute_resampling(trace)
        np.testing.assert_allclose(again, trace.numbers["resampling_importance_accuracy"][:-1], atol=3e-7)
        rows += len(again)
    assert rows == 2865


def test_where_all_rollouts_differ_counterfactual_is_minus_resampling(traces):
    rows = 0
    for trace in traces:
        chosen = trace.numbers["different_trajectories_fraction"][:-1] == 1
        found = trace.numbers["counterfactual_importance_accuracy"][:-1][chosen]
        np.testing.assert_allclose(found, -recompute_resampling(trace)[chosen], atol=1e-6)
        rows += int(chosen.sum())
    assert rows == 324


def test_overdeterminedness_follows_from_the_replacements(with_replacements):
    assert [trace.problem_id for trace in with_replacements] == ["2236", "2238", "6998"]
    for trace in with_replacements:
        gap = np.abs(recompute_overdeterminedness(trace) - trace.numbers["overdeterminedness"])
        assert np.mean(gap <= 0.02) >= 0.98


def test_the_category_table_is_as_printed(traces):
    rows = category_table(traces)
    assert [row.category for row in rows] == list(PRINTED)
    for row in rows:
        share, *means = PRINTED[row.category]
        assert row.share == pytest.approx(share, abs=0.001)
        assert [row.means[name].value for name in TABLE] == pytest.approx(means, abs=0.001)
        for mean in row.means.values():
            assert mean.low <= mean.value <= mean.high


def test_the_planning_effect_of_the_table_is_within_the_noise_between_problems(traces):
    by_kl = category_contrast(traces, "plan_generation", "active_computation", "counterfactual_importance_kl")
    assert by_kl.value == pytest.approx(0.568 - 0.156, abs=0.002)
    assert by_kl.n == 10
    assert by_kl.low < 0 < by_kl.high
    forced = category_contrast(traces, "plan_generation", "active_computation", "forced_importance_kl")
    assert forced.high < 0


def test_mean_numbers(traces):
    assert mean_number(traces, "different_trajectories_fraction").value == pytest.approx(0.515, abs=0.001)
    assert mean_number(traces, "overdeterminedness").value == pytest.approx(0.594, abs=0.001)


def test_few_single_steps_are_more_than_noise(traces):
    steps = neighbour_tests(traces, rollouts=100)
    assert len(steps.z) == 2865
    assert np.mean(np.abs(steps.z) > 1.96) == pytest.approx(0.079, abs=0.0005)
    assert steps.kept.sum() == 41
    kinds = np.array(steps.categories)
    kept = {kind: int((steps.kept & (kinds == kind)).sum()) for kind in PRINTED}
    assert (kept["plan_generation"], kept["uncertainty_management"], kept["active_computation"]) == (10, 8, 15)
    assert (kept["fact_retrieval"], kept["self_checking"]) == (5, 0)
    assert np.abs(steps.change).mean() == pytest.approx(0.034, abs=0.0005)
    assert steps.expected == pytest.approx(0.025, abs=0.001)
    answered = neighbour_tests(traces)
    assert answered.kept.sum() == 40
    assert np.abs(answered.change).mean() > 1.25 * answered.expected


@pytest.mark.parametrize(("least", "pearson", "n"), [(0.4, 0.93, 1686), (0.1, 0.69, 2196)])
def test_the_identity_holds_where_rollouts_often_differ(traces, least, pearson, n):
    found, rows = identity_agreement(traces, least)
    assert found == pytest.approx(pearson, abs=0.005)
    assert rows == n


def test_the_two_published_matrices_hardly_agree(traces):
    pairs = [trace for trace in traces if trace.influence is not None]
    assert [trace.name for trace in pairs] == ["correct_problem_2236", "correct_problem_2238"]
    assert np.mean([matrix_agreement(trace)[0] for trace in pairs]) == pytest.approx(0.02, abs=0.002)
    assert np.mean([matrix_agreement(trace, near=True)[0] for trace in pairs]) == pytest.approx(0.11, abs=0.006)
    artefacts = np.concatenate([trace.suppression[~np.isnan(trace.suppression)] for trace in pairs]) > 10
    assert artefacts.mean() == pytest.approx(0.006, abs=0.002)


def test_a_view_holds_everything_that_was_published(traces):
    for trace in traces:
        view = trace.view()
        assert "".join(view.sentences) == "".join(trace.sentences)
        assert len(view.tracks) == len(COLUMNS)
        assert all(track.value[-1] is None for track in view.tracks)
        assert view.curve is not None
        assert view.curve.value[-1] == float(trace.correct)
        for value, low, high in zip(view.curve.value, view.curve.low, view.curve.high, strict=True):
            assert low - 1e-9 <= value <= high + 1e-9
        assert (view.alternatives is not None) == (trace.replacements is not None)
        assert len(view.links) == (3 if trace.influence is not None else 1)
    view = find_published(traces, "correct_problem_2236").view()
    assert TraceView.from_dict(json.loads(json.dumps(view.to_dict()))) == view
    n = len(view.sentences)
    assert len(view.links[1].links) == n * (n - 1) // 2


def test_counterfactual_numbers_without_different_rollouts_are_not_zero_but_undefined(traces):
    trace = traces[0]
    (track,) = [each for each in trace.view().tracks if each.name == "counterfactual importance kl"]
    for value, d in zip(track.value[:-1], trace.numbers["different_trajectories_fraction"][:-1], strict=True):
        assert (value is None) == (d == 0)


def test_findings_carry_an_n_and_say_what_noise_gives(traces):
    found = {item.name: item for item in published_findings(traces)}
    assert all(item.n for item in found.values())
    change = found["mean absolute difference"]
    assert change.control.value < change.value
    assert found["counterfactual kl, plan generation"].control.value == pytest.approx(0.156, abs=0.001)


def test_bad_input_is_refused_in_one_line(traces, tmp_path):
    with pytest.raises(CutawayError, match=r"no traces\.jsonl\.gz"):
        load_published(tmp_path)
    with pytest.raises(UsageError, match="did you mean 'correct_problem_2236'"):
        find_published(traces, "corect_problem_2236")
    with pytest.raises(UsageError, match="matrices were not published"):
        matrix_agreement(find_published(traces, "correct_problem_330"))
    with pytest.raises(UsageError, match="replacement sentences were not published"):
        recompute_overdeterminedness(find_published(traces, "correct_problem_330"))
    with pytest.raises(UsageError, match="is not k / n"):
        counts_of(0.0012345)
    assert counts_of(0.5) == (50, 100)
    assert counts_of(2 / 3) == (66, 99)


@pytest.mark.slow
def test_different_trajectories_follow_from_the_replacements(with_replacements):
    """Needs the paper's embedder over 9,000 sentences."""
    embed = load_embedder("all-minilm-l6-v2")
    for trace in with_replacements:
        gap = np.abs(recompute_different(trace, embed) - trace.numbers["different_trajectories_fraction"])[:-1]
        assert np.all(gap <= 0.02)
