"""The comparison: networks of the right size, honest intervals and thresholds, partial results."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cutaway.errors import UsageError
from cutaway.planted.polynomial import XOR, polynomial_data
from cutaway.probes.scoring import alarm_threshold, area_gains, auroc
from cutaway.probes.shortcuts import length_scores, word_scores
from cutaway.probes.tpc import Labelled, Recipe, compare, fit_early_exit, fit_linear, fit_mlp
from cutaway.probes.tpc.calibration import from_data
from cutaway.probes.tpc.comparison import difference
from cutaway.probes.tpc.method import f1
from cutaway.probes.tpc.report import charts, findings, summarise
from cutaway.stats import bootstrap

RECIPE = Recipe(order=3, rank=6, epochs=15, batch=128, rate=2e-2, dropout=0.0)


@pytest.fixture(scope="module")
def split():
    return from_data(polynomial_data(XOR, n=2400, d=8, seed=0), (1600, 400, 400))


@pytest.fixture(scope="module")
def found(split):
    return compare(split.train, split.validation, split.test, RECIPE, runs=2, false_alarms=0.05)


def test_a_pair_is_praised_and_shuffled_labels_are_not(found):
    assert found.complete
    assert not found.linear_is_enough
    assert found.gains[0].low > 0.25
    assert all(gain.low <= 0 for gain in found.control_areas)
    assert len(found.control_gains) == 2
    assert len(found.runs) == 2
    assert len(found.joint) == 3
    assert found.point("order 2").recall.value > found.point("order 1").recall.value + 0.3
    assert found.point("order 2").alarms.low <= 0.05
    assert sum(found.point("cascade").exits) == found.n == 400


def test_findings_and_charts_say_it(found):
    items = {item.name: item for item in findings(found, {"length alone": found.points[0].auroc}, 0.05)}
    gain = items["F1 gained by order 2 over order 1"]
    assert gain.value == pytest.approx(found.gains[0].value)
    assert gain.control.value < 0.2
    recall = items["recall at the threshold for 5% validation false alarms, cascade"]
    assert recall.control.name == "false alarms on test rows"
    flags = found.point("order 2").recall_here
    assert items["recall at 5% false alarms on test rows, order 2"].value == flags
    assert "higher orders help" in summarise(found)
    assert {chart.y_label for chart in charts(found)} >= {"F1"}
    assert len(found.to_frame()) == len(found.points)
    assert found.to_dict()["n"] == 400


def test_too_few_negatives_give_no_recall(split):
    few = Labelled(split.validation.x[:60], split.validation.y[:60])
    partial = compare(split.train, few, split.test, Recipe(order=2, rank=2, epochs=1), report=_stop_at("joint"))
    assert not partial.complete
    assert "needs 99" in partial.why_no_recall
    assert partial.point("order 1").recall is None
    undefined = [item for item in findings(partial, {}, 0.01) if item.name.startswith("recall")]
    undefined = [item for item in undefined if "on test rows" not in item.name]
    assert undefined
    assert all("needs 99" in item.undefined for item in undefined)


def _stop_at(step):
    def report(done, total, note):
        if note == step:
            raise KeyboardInterrupt

    return report


def test_networks_have_the_size_of_the_orders(split):
    linear = fit_linear(split.train, split.validation)
    recipe = Recipe(order=2, rank=6, epochs=1)
    mlp = fit_mlp(split.train, split.validation, linear, 500, recipe)
    assert abs(mlp.parameters - 500) <= linear.d + 2
    early = fit_early_exit(split.train, split.validation, linear, (9, 54, 54), recipe)
    assert early.logits(split.test.x).shape == (3, 400)
    assert early.multiplies[0] == linear.d
    (w1, b1), (w2, b2) = early.layers
    z = linear.standardised(split.test.x[:1])[0]
    h1 = torch.relu(w1 @ z + b1)
    h2 = torch.relu(w2 @ h1 + b2)
    expected = [float(h @ w + b) for h, (w, b) in zip((z, h1, h2), early.heads, strict=True)]
    np.testing.assert_allclose(early.logits(split.test.x)[:, 0].numpy(), expected, atol=1e-5)


def test_auroc_equals_the_library_and_its_interval_covers():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(50) < 0.4, rng.integers(0, 6, 50).astype(float)
    assert auroc(labels, scores).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    covered = 0
    for _ in range(200):
        y = np.arange(120) < 60
        s = rng.standard_normal(120) + y
        truth = 0.5 * (1 + math.erf(0.5))
        interval = auroc(y, s)
        covered += interval.low <= truth <= interval.high
    assert covered >= 180


def test_the_alarm_threshold_keeps_its_rate():
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(400):
        threshold = alarm_threshold(rng.standard_normal(150), 0.02)
        rates.append((rng.standard_normal(200) > threshold).mean())
    assert 0.012 < np.mean(rates) < 0.0205
    assert alarm_threshold(np.zeros(98), 0.01) is None
    assert alarm_threshold(np.arange(99.0), 0.01) == 98.0


def test_difference_of_equals_has_no_interval():
    y = np.array([True, False, True, False])
    assert difference(y, y, y).value == 0.0
    assert math.isnan(difference(y, y, y).low)


def test_resampling_counts_is_resampling_rows():
    rng = np.random.default_rng(3)
    y, a, b = rng.random(300) < 0.4, rng.random(300) < 0.5, rng.random(300) < 0.3
    fast = difference(y, a, b)
    rows = np.stack([y, a, b], 1)
    slow = bootstrap(
        rows, lambda x: f1(x[:, 0] > 0, x[:, 1] > 0) - f1(x[:, 0] > 0, x[:, 2] > 0), method="percentile", n=8000
    )
    assert fast.value == pytest.approx(slow.value, abs=1e-12)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.01)


def test_area_gains_are_differences_of_areas():
    rng = np.random.default_rng(4)
    y = rng.random(200) < 0.5
    scores = rng.standard_normal((3, 200)) + y
    gains = area_gains(y, scores)
    for row, gain in zip(scores[1:], gains, strict=True):
        assert gain.value == pytest.approx(roc_auc_score(y, row) - roc_auc_score(y, scores[0]), abs=1e-12)
        assert gain.low < gain.value < gain.high
    assert gains[0].level == pytest.approx(0.975)


def test_shortcuts_see_what_they_should():
    train = ["short one", "a much longer text than the other one here"] * 20
    labels = np.array([False, True] * 20)
    assert auroc(labels, length_scores(train, labels, train)).value == 1.0
    assert auroc(labels, word_scores(train, labels, train)).value == 1.0


def test_bad_input(split):
    one = Labelled(split.test.x, torch.ones_like(split.test.y))
    with pytest.raises(UsageError, match="both classes"):
        compare(split.train, split.validation, one, RECIPE)
    with pytest.raises(UsageError, match="order=1"):
        compare(split.train, split.validation, split.test, Recipe(order=1))
