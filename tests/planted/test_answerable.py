"""The planted domains: what the law says is what rows show."""

import numpy as np
import pytest

from cutaway.planted.answerable import transfer_data
from cutaway.probes.scoring import auroc


def test_directions_are_orthonormal_and_means_are_the_law():
    data = transfer_data(seed=2)
    assert data.atoms @ data.atoms.T == pytest.approx(np.eye(48), abs=1e-9)
    x, y = data.rows(1, 8000)
    means = (x[y].mean(0) - x[~y].mean(0)) / 2 @ data.atoms.T
    wanted = np.zeros(48)
    wanted[0], wanted[2] = data.concept, data.shortcut
    assert means == pytest.approx(wanted, abs=0.06)
    assert y.sum() == 4000


def test_stated_areas_are_those_of_the_stated_probes():
    data = transfer_data(seed=1)
    best = data.concept * data.atoms[0] + data.shortcut * data.atoms[1]
    for domain, wanted in ((0, data.truth.dense_home), (1, data.truth.dense_away)):
        x, y = data.rows(domain, 6000)
        assert auroc(y, (x @ best).astype(float)).value == pytest.approx(wanted, abs=0.01)
        assert auroc(y, (x @ data.atoms[0]).astype(float)).value == pytest.approx(data.truth.concept_area, abs=0.01)


def test_the_null_s_labels_look_at_nothing():
    data = transfer_data(null=True, seed=0)
    x, y = data.rows(0, 6000)
    assert auroc(y, (x @ data.atoms[0]).astype(float)).value == pytest.approx(0.5, abs=0.03)
    assert data.truth.concept is None
