import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from cutaway.errors import UsageError
from cutaway.stats.fdr import benjamini_hochberg, e_benjamini_hochberg


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.sampled_from([0.01, 0.05, 0.2]))
def test_bh_equals_scipy(p, q):
    found = benjamini_hochberg(p, q)
    np.testing.assert_allclose(found.adjusted, false_discovery_control(p), rtol=1e-12)
    np.testing.assert_array_equal(found.rejected, found.adjusted <= q)


@given(st.lists(st.floats(-5, 9), min_size=1, max_size=20), st.sampled_from([0.05, 0.2]))
def test_e_bh_equals_the_definition(log_e, q):
    e, m = np.exp(log_e), len(log_e)
    ordered = np.sort(e)[::-1]
    ks = [k for k in range(1, m + 1) if ordered[k - 1] >= m / (k * q)]
    expected = e >= ordered[max(ks) - 1] if ks else np.zeros(m, dtype=bool)
    np.testing.assert_array_equal(e_benjamini_hochberg(log_e, q).rejected, expected)


def test_no_evidence_and_overwhelming_evidence():
    found = e_benjamini_hochberg([-np.inf, 5000.0, 0.0], 0.05)
    assert found.rejected.tolist() == [False, True, False]
    assert repr(found) == "1 of 3 rejected at false-discovery rate 0.05"
    assert benjamini_hochberg([]).rejected.shape == (0,)


def test_false_discovery_rate_under_dependence():
    rng = np.random.default_rng(0)
    false_share = []
    for _ in range(500):
        noise = 0.8 * rng.standard_normal() + 0.6 * rng.standard_normal(50)
        log_e = 3 * (noise + np.r_[np.full(10, 3.0), np.zeros(40)]) - 4.5
        rejected = e_benjamini_hochberg(log_e, 0.1).rejected
        false_share.append(rejected[10:].sum() / max(1, rejected.sum()))
    assert np.mean(false_share) <= 0.1


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="p-value"):
        benjamini_hochberg([0.1, np.nan])
    with pytest.raises(UsageError, match="nan"):
        e_benjamini_hochberg([np.nan])
    with pytest.raises(UsageError, match="q=5"):
        benjamini_hochberg([0.1], 5.0)
