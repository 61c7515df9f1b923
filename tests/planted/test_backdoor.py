"""The planted outliers: moments that agree, and what does not. (The trained model: tests of safetynet.)"""

import numpy as np
import pytest

from cutaway.planted.backdoor import outlier_data


def test_rows_off_the_curve_have_the_normal_mean_covariance_and_length():
    law = outlier_data(1)
    normal, off = law.rows(40_000), law.rows(40_000, "off curve", 1)
    assert off.mean(0) == pytest.approx(normal.mean(0), abs=0.08)
    assert np.cov(off.T) == pytest.approx(np.cov(normal.T), abs=0.25)
    lengths = [(rows**2).sum(1) for rows in (normal, off)]
    assert np.quantile(lengths[0], [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(lengths[1], [0.1, 0.5, 0.9]), rel=0.03)


def test_only_normal_rows_turn_twice_as_fast():
    law = outlier_data(0)
    for kind, same in (("normal", True), ("off curve", False)):
        part = law.rows(200, kind) @ law.rotation.T
        curve = part[:, 4:20] / 1.5
        slow, fast = (np.arctan2(curve[:, 4 + 8 * i : 8 + 8 * i], curve[:, 8 * i : 4 + 8 * i]) for i in (0, 1))
        gap = np.abs(np.exp(1j * fast) - np.exp(2j * slow))
        assert (gap.max() < 1e-3) == same


def test_shifts_are_along_one_direction():
    law = outlier_data(0)
    for kind, place, size in (("shift", 0, 30.0), ("small", 20, 1.5)):
        moved = (law.rows(4000, kind).mean(0) - law.rows(4000).mean(0)) @ law.rotation.T
        wanted = np.zeros(len(moved))
        wanted[place] = size
        assert moved == pytest.approx(wanted, abs=0.3)
