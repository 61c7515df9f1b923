"""What can be derived again from the published per-sentence numbers in ``data/thought-anchors``."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from cutaway.stats import benjamini_hochberg

DATA = Path(__file__).parents[2] / "data" / "thought-anchors"

CATEGORIES = {
    "active_computation": (0.156, 0.209, 3.131, 0.044),
    "fact_retrieval": (0.290, 0.288, 1.634, 0.051),
    "plan_generation": (0.568, 0.578, 1.063, 0.053),
    "uncertainty_management": (0.263, 0.263, 0.803, 0.045),
    "result_consolidation": (0.175, 0.208, 2.103, 0.033),
    "self_checking": (0.106, 0.101, 0.355, 0.026),
    "problem_setup": (0.362, 0.460, 3.131, 0.071),
    "final_answer_emission": (0.020, 0.009, 0.001, 0.002),
}
"""Counterfactual, resampling and forced KL, and mean absolute counterfactual accuracy difference."""


@pytest.fixture(scope="module")
def traces():
    found = json.loads((DATA / "accuracy.json").read_text())
    return {name: {k: np.array(v) for k, v in columns.items()} for name, columns in found.items()}


def test_resampling_importance_is_the_difference_of_neighbouring_accuracies(traces):
    rows = 0
    for t in traces.values():
        np.testing.assert_allclose(t["resampling_importance_accuracy"][:-1], np.diff(t["accuracy"]), atol=3e-7)
        rows += len(t["accuracy"]) - 1
    assert rows == 2865


def test_without_similar_rollouts_counterfactual_is_minus_resampling(traces):
    rows = 0
    for t in traces.values():
        all_differ = t["different_trajectories_fraction"][:-1] == 1
        counterfactual = t["counterfactual_importance_accuracy"][:-1][all_differ]
        np.testing.assert_allclose(counterfactual, -t["resampling_importance_accuracy"][:-1][all_differ], atol=1e-6)
        rows += all_differ.sum()
    assert rows == 324


def test_category_table(traces):
    for category, published in CATEGORIES.items():
        per_trace = []
        for t in traces.values():
            chosen = t["function_tag"] == category
            if chosen.any():
                columns = (
                    t["counterfactual_importance_kl"],
                    t["resampling_importance_kl"],
                    t["forced_importance_kl"],
                    np.abs(t["counterfactual_importance_accuracy"]),
                )
                per_trace.append([column[chosen].mean() for column in columns])
        np.testing.assert_allclose(np.mean(per_trace, axis=0), published, atol=0.001)


def test_overdeterminedness_is_the_share_of_repeated_replacements(traces):
    for name, counts in json.loads((DATA / "replacements.json").read_text()).items():
        again = 1 - np.array(counts["unique"]) / np.array(counts["total"])
        close = np.abs(again - traces[name]["overdeterminedness"]) <= 0.02
        assert close.mean() >= 0.98


def test_few_single_steps_survive_false_discovery_control(traces):
    z = []
    for t in traces.values():
        p = t["accuracy"]
        pooled = (p[1:] + p[:-1]) / 2
        error = np.sqrt(np.maximum(2 * pooled * (1 - pooled) / 100, 1e-12))
        z.append(np.where(pooled * (1 - pooled) > 0, np.diff(p) / error, 0.0))
    z = np.concatenate(z)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.079, abs=0.004)
    assert benjamini_hochberg(2 * norm.sf(np.abs(z))).rejected.sum() == pytest.approx(41, abs=4)
