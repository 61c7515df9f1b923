import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from cutaway.errors import UsageError
from cutaway.stats.divergence import jensen_shannon, kl, total_variation

pairs = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 30), min_size=n, max_size=n) for _ in range(2)))
)


@given(pairs)
def test_bounds_symmetry_and_zero(pair):
    p, q = (np.array(side) for side in pair)
    if p.sum() == 0 or q.sum() == 0:
        assert np.isnan([kl(p, q), jensen_shannon(p, q), total_variation(p, q)]).all()
        assert kl(p, q, "floor") == 0.0
        return
    assert kl(p, q) >= -1e-12
    assert kl(p, p) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-6)
    assert -1e-12 <= jensen_shannon(p, q) <= np.log(2) + 1e-12
    assert total_variation(p, q) == pytest.approx(max_over_sets(p / p.sum(), q / q.sum()))


def max_over_sets(p, q):
    return float(np.clip(p - q, 0, None).sum())


def test_the_published_floor_makes_one_new_answer_expensive():
    p, q = [99, 1], [100, 0]
    assert kl(p, q, "floor") == pytest.approx(0.01 * np.log(0.01 / 1e-9) + 0.99 * np.log(0.99), abs=1e-3)
    assert kl(p, q) < 0.01 < 0.15 < kl(p, q, "floor")


def test_jackknife_removes_most_of_the_bias_of_equal_distributions():
    rng = np.random.default_rng(0)
    shares = [0.5, 0.3, 0.2]
    plain, corrected = [], []
    for _ in range(500):
        p, q = rng.multinomial(60, shares), rng.multinomial(60, shares)
        plain.append(kl(p, q))
        corrected.append(kl(p, q, jackknife=True))
    assert np.mean(plain) > 0.02
    assert abs(np.mean(corrected)) < np.mean(plain) / 4


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="align"):
        kl([1, 2], [1, 2, 3])
    with pytest.raises(UsageError, match="negative"):
        total_variation([-1, 2], [1, 2])
    with pytest.raises(UsageError, match="jackknife"):
        kl([1], [1], "floor", jackknife=True)
