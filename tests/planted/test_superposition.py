"""Rates, counts, correlations and supports are as configured; the null has the moments and nothing else."""

import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.superposition import superposition

N = 100_000


@pytest.mark.parametrize(("law", "together"), [("decay", 0.5), ("decay", 0.0), ("zipf", 1.0)])
def test_rates_counts_and_correlations_are_the_configured_ones(law: str, together: float) -> None:
    planted = superposition(64, 130, 5.0, groups=8, together=together, law=law)
    truth = planted.truth
    fires = (planted.codes(N) > 0).double()
    assert torch.bincount(truth.groups).tolist().count(0) == 0
    assert len(truth.groups) == 130  # the last group is whole, too
    p = truth.rates.double()
    rate, error = fires.mean(0), (p * (1 - p) / N).sqrt()
    assert ((rate - p).abs() < 4.5 * error).all()  # 130 of them: 3 standard errors for one
    assert ((rate - p).abs() < 3 * error).double().mean() > 0.98
    counts = fires.sum(1)
    assert abs(float(counts.mean()) - 5.0) < 3 * float(counts.std()) / N**0.5
    wanted = truth.correlation().double()
    found = torch.corrcoef(fires.T)
    off = ~torch.eye(130, dtype=torch.bool)
    assert ((found - wanted)[off].abs() * N**0.5 < 3).double().mean() > 0.98
    same = (truth.groups[:, None] == truth.groups) & off
    assert abs(float((found - wanted)[same].mean())) < 0.002
    assert float(wanted[~same & off].abs().max()) < 1e-6
    assert (float(wanted[same].min()) > 0.005) == (together > 0)


def test_every_row_draws_its_own_support() -> None:
    fires = superposition(64, 128, 8.0).codes(N) > 0
    assert len(fires.unique(dim=0)) > 0.9 * N


def test_with_all_together_no_feature_fires_without_its_parent() -> None:
    planted = superposition(32, 64, 6.0, groups=4, together=1.0)
    fires = planted.codes(5000) > 0
    for group in range(4):
        members = (planted.truth.groups == group).nonzero()[:, 0]
        assert not (fires[:, members[1:]].any(1) & ~fires[:, members[0]]).any()


def test_rows_are_codes_times_directions_and_the_null_has_their_moments() -> None:
    planted, null = superposition(16, 40, 4.0), superposition(16, 40, 4.0, null=True)
    rows = planted.rows(N, seed=3)
    assert torch.allclose(rows[:50], (planted.codes(N, seed=3) @ planted.truth.atoms)[:50], atol=1e-6)
    assert not torch.equal(rows, planted.rows(N, seed=4))
    other = null.rows(N, seed=5)
    assert torch.allclose(rows.mean(0), other.mean(0), atol=0.02)
    assert torch.allclose(rows.T.cov(), other.T.cov(), atol=0.02)
    kurtosis = [float(((x - x.mean(0)) @ planted.truth.atoms[0]).pow(4).mean()) for x in (rows, other)]
    assert kurtosis[0] > 1.2 * kurtosis[1]  # along a true direction only the planted rows are spiky
    assert null.truth.atoms.shape == (0, 16)
    noisy = superposition(16, 40, 4.0, noise=0.5).rows(N, seed=3)
    assert float((noisy - rows).std()) == pytest.approx(0.5, abs=0.01)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="did you mean 'zipf'"):
        superposition(law="zip")
    with pytest.raises(UsageError, match="rate of 1"):
        superposition(64, 8, 9.0)
    with pytest.raises(UsageError, match="groups from 1 to n_features"):
        superposition(groups=500)
    with pytest.raises(UsageError, match="together=2"):
        superposition(together=2.0)
    with pytest.raises(UsageError, match="no codes"):
        superposition(null=True).codes(3)
    with pytest.raises(UsageError, match="n=0"):
        superposition().rows(0)
