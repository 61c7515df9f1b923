"""Areas, clustered intervals, calibration error and shortcuts against naive forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.probes.scoring import auroc, auroc_difference, calibration_error, recall_at
from cutaway.probes.shortcuts import overlap


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 5)), min_size=6, max_size=30))
def test_areas_equal_counting_pairs(rows):
    y = np.array([row[0] for row in rows])
    if y.sum() < 2 or (~y).sum() < 2:
        return
    a, b = (np.array([float(row[i]) for row in rows]) for i in (1, 2))

    def naive(s):
        return np.mean([[(p > n) + 0.5 * (p == n) for n in s[~y]] for p in s[y]])

    assert auroc(y, a).value == pytest.approx(naive(a), abs=1e-12)
    assert auroc_difference(y, a, b).value == pytest.approx(naive(a) - naive(b), abs=1e-12)


def test_clusters_of_copies_count_once():
    rng = np.random.default_rng(0)
    y = rng.random(80) < 0.5
    scores = rng.standard_normal(80) + y
    one = auroc(y, scores)
    rows = np.repeat(np.arange(80), 5)
    many, clustered = auroc(y[rows], scores[rows]), auroc(y[rows], scores[rows], clusters=rows)
    assert clustered.value == pytest.approx(one.value)
    assert clustered.high - clustered.low == pytest.approx(one.high - one.low, rel=0.03)
    assert many.high - many.low < 0.6 * (one.high - one.low)


def test_clustered_intervals_cover():
    rng, hits, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        groups = np.repeat(np.arange(40), 4)
        y = rng.random(160) < 0.5
        shared = np.repeat(rng.standard_normal(40), 4)
        scores = shared + 0.5 * rng.standard_normal(160) + 0.8 * y
        found = auroc(y, scores, clusters=groups)
        # z ~ N(0.8, 2 (1 + 0.25)) between rows of different groups
        hits += found.low <= 0.694 <= found.high
    assert hits / trials > 0.88


def test_calibration_error_of_a_known_curve():
    y = np.tile([True, False], 500)
    assert calibration_error(y, np.zeros(1000)) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(y, np.full(1000, 50.0)) == pytest.approx(0.5, abs=1e-9)


def test_recall_and_overlap():
    assert recall_at(np.arange(99.0), np.array([98.5, 97.0]), 0.01) == 0.5
    assert recall_at(np.arange(50.0), np.array([98.5]), 0.01) is None
    assert overlap("Where was the bridge built?", "The bridge was built in Rome.") == 1.0
    assert overlap("Who is it?", "Nobody.") == 0.0


def test_bad_scores():
    with pytest.raises(UsageError, match="nan"):
        auroc(np.array([True, False]), np.array([np.nan, 0.0]))
    with pytest.raises(UsageError, match="one of each"):
        auroc(np.array([True, False]), np.array([0.0]))
