"""Known blind spots, kept false-alarm rates, shrinkage, and scores that are one row's own."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.backdoor import outlier_data
from cutaway.probes.safetynet import fit_detector, fit_ensemble, published_alarms
from cutaway.probes.safetynet.calibration import SEES, blindness, realised
from cutaway.probes.safetynet.detectors import NAMES
from cutaway.probes.safetynet.ensemble import _ranks, false_alarm_band, threshold


@pytest.fixture(scope="module")
def rows():
    law = outlier_data(0)
    return torch.from_numpy(law.rows(600))


@pytest.fixture(scope="module")
def ensemble(rows):
    return fit_ensemble(rows, components=20)


@pytest.mark.parametrize(
    "names",
    [("mahalanobis", "pca", "pca residual", "autoencoder"), pytest.param(NAMES, marks=pytest.mark.slow)],
    ids=["without vae", "all"],
)  # the slow tier: a second network, more rows
def test_every_detector_has_its_known_blind_spot(names):
    size = 4000 if "vae" in names else 2000
    areas = blindness(0, fitted=size, tested=1000, names=names).areas
    for key, sees in SEES.items():
        if key[0] not in names:
            continue
        assert areas[key] >= 0.95 if sees else 0.45 <= areas[key] <= 0.55, (key, areas[key])


def test_mahalanobis_is_the_formula():
    from sklearn.covariance import ledoit_wolf

    x = torch.randn(80, 5, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 6.0))
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    inverse = np.linalg.inv(ledoit_wolf(z, assume_centered=True)[0])
    naive = [np.sqrt(row @ inverse @ row) for row in z]
    assert fit_detector("mahalanobis", x).scores(x).double().numpy() == pytest.approx(naive, rel=1e-4)


def test_the_two_pca_distances_and_the_norm_are_a_right_triangle():
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    inside, outside = (fit_detector(name, x, components=3).scores(x) for name in ("pca", "pca residual"))
    z = (x - x.mean(0)) / x.std(0, correction=0)
    assert torch.allclose(inside**2 + outside**2, (z**2).sum(1), rtol=1e-4)


@pytest.mark.parametrize("d", [100, 400])
def test_mahalanobis_with_fewer_rows_than_features_keeps_its_rate(d):
    """A shrunk covariance, and a threshold from rows that the covariance has not seen."""
    shares = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        mix = torch.randn(d, d, generator=generator) / d**0.5
        x = torch.randn(2180, d, generator=generator) @ mix
        made = fit_ensemble(x[:180], ["mahalanobis"], shares=(0.34, 0.11, 0.55), seed=seed)
        shares.append(made.alarms(x[180:], 0.05).mean())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.02)


def test_a_score_does_not_depend_on_the_other_rows(ensemble, rows):
    whole = ensemble.scores(rows[:50])
    alone = np.concatenate([ensemble.scores(row[None]) for row in rows[:50]], axis=1)
    assert whole == pytest.approx(alone, rel=1e-3, abs=1e-4)


def test_ranks_are_in_order_and_untied():
    reference = np.sort(np.random.default_rng(0).standard_normal((2, 50)), axis=1)
    given = np.linspace(-2, 9, 400)
    ranks = _ranks(np.stack([given, given]), reference)
    inside = (given > reference[0][0]) & (given < 9)
    assert (np.diff(ranks[0][inside]) > 0).all()


def test_the_ensemble_keeps_its_rate_and_catches_every_kind():
    law = outlier_data(1)
    made = fit_ensemble(torch.from_numpy(law.rows(6000, seed=2)), NAMES[:3], shares=(0.2, 0.3, 0.5), components=20)
    fresh = torch.from_numpy(law.rows(3000, seed=3))
    for rate in (0.01, 0.05):
        low, high = false_alarm_band(3000, rate, len(made.held), level=0.99)
        assert low <= made.alarms(fresh, rate).mean() <= high
        for kind in ("shift", "small"):
            assert made.alarms(torch.from_numpy(law.rows(200, kind)), rate).mean() > 0.9


@pytest.mark.slow  # fits on 40,000 rows and repeats over seeds
def test_the_realised_rate_lies_in_the_binomial_band():
    found = [realised(seed) for seed in range(5)]
    assert min(recall for each in found for _, _, recall in each.values()) > 0.8
    for rate in (0.01, 0.05):
        low, high = false_alarm_band(5000, rate)
        assert sum(low <= each[rate][0] / 5000 <= high for each in found) >= 4


def test_the_released_rule_flags_most_normal_rows(ensemble, rows):
    assert published_alarms(ensemble.own, ensemble.scores(rows), ensemble.names).mean() > 0.4


def test_p_values_of_normal_rows_are_spread_evenly(ensemble):
    fresh = torch.from_numpy(outlier_data(0).rows(2000, seed=9))
    p = ensemble.p_values(fresh)
    assert np.quantile(p, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)
    assert ensemble.p_values(torch.full((1, fresh.shape[1]), 50.0))[0] <= 1 / len(ensemble.held) + 1e-9


def test_a_feature_that_never_changes_counts_for_nothing(rows):
    x = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    for name in NAMES:
        assert bool(torch.isfinite(fit_detector(name, x, epochs=1).scores(x)).all())


def test_bad_input(ensemble, rows):
    for call, match in [
        (lambda: fit_detector("gram", rows), "detector 'gram'"),
        (lambda: fit_detector("pca", rows[:5]), "10 or more"),
        (lambda: fit_detector("pca", rows * torch.nan), "nan"),
        (lambda: fit_detector("pca", rows, components=0), "components"),
        (lambda: fit_ensemble(rows[:30]), "each part"),
        (lambda: fit_ensemble(rows, shares=(0.5, 0.5, 0.5)), "shares"),
        (lambda: ensemble.scores(rows[:, :5]), "fitted on"),
        (lambda: ensemble.scores(rows[:0]), "at least one row"),
        (lambda: threshold(np.zeros(20), 0.01), "99 can"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
