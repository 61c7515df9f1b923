"""The table on planted domains, its marks, and what it refuses."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.planted.answerable import transfer_data
from cutaway.probes.sae_answerability.calibration import loses_as_predicted, planted_sets, ranks_and_flags
from cutaway.probes.selection import codes_of
from cutaway.probes.transfer import Labelled, agreement, transfer


@pytest.fixture(scope="module")
def data():
    return transfer_data(seed=0)


def test_the_dense_probe_loses_what_theory_says_and_the_concept_does_not(data):
    assert loses_as_predicted(data)
    found = transfer(planted_sets(data), ("1 latent", "logistic"), resamples=2)
    assert found.of("domain 0", "domain 1", "1 latent").area.value < 0.6
    assert found.gap("domain 0", "domain 1", "logistic") == pytest.approx(0.09, abs=0.06)
    cell = found.of("domain 0", "domain 1", "1 latent")
    assert cell.latents == (1,)
    assert cell.retuned >= cell.accuracy
    assert len(found.to_frame()) == 18


def test_concept_and_shortcuts_are_named_over_seeds():
    assert sum(ranks_and_flags(transfer_data(seed=seed)) for seed in range(20)) >= 19


def test_the_null_claims_nothing():
    found = transfer(planted_sets(transfer_data(null=True, seed=3), 300), ("mean difference",), resamples=5)
    assert sum(cell.area.low > 0.5 for cell in found.cells) <= 2


def test_intervals_widen_with_the_training_rows_drawn_again(data):
    sets = [each.part(np.arange(600) < (60 if i == 0 else 600)) for i, each in enumerate(planted_sets(data))]
    one, both = (transfer(sets, ("logistic",), resamples=n).of("domain 0", "domain 1", "logistic") for n in (0, 12))
    assert both.area.high - both.area.low > 1.3 * (one.area.high - one.area.low)
    assert both.area.value == one.area.value


def test_small_sets_and_one_class_are_marked(data):
    sets = planted_sets(data)
    few, one = sets[1].part(np.arange(600) < 20), sets[2].part(sets[2].y)
    found = transfer([sets[0], few, one], ("mean difference",), resamples=0)
    assert "20 rows" in found.of("domain 0", "domain 1", "mean difference").mark
    assert found.of("domain 0", "domain 2", "mean difference").mark == "one class only"
    assert found.of("domain 2", "domain 0", "mean difference").mark == "training set: one class only"
    assert np.isnan(found.gap("domain 0", "domain 1", "mean difference"))


def test_latents_that_agree_are_said_to():
    rng, labels = np.random.default_rng(0), np.arange(400) % 2 == 0
    strength = rng.uniform(-1, 1, 40)

    def one(name):
        dense = rng.standard_normal((400, 40)) + strength * np.where(labels, 1, -1)[:, None]
        return Labelled(
            name,
            torch.zeros(400, 2),
            labels,
            tuple(f"{name}{i}" for i in range(400)),
            codes_of(torch.from_numpy(dense)),
        )

    tau, _, _ = agreement(one("a"), one("b"))
    assert tau.low > 0.6


def test_ctrl_c_leaves_the_cells_that_are_done(data):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    found = transfer(planted_sets(data, 100), ("mean difference",), resamples=0, report=stop)
    assert not found.complete
    assert len(found.cells) == 6


def test_what_is_refused(data):
    sets = planted_sets(data, 60)
    same = Labelled("copy", sets[0].x, sets[0].y, sets[0].groups)
    wide = Labelled("wide", torch.zeros(40, 3), np.arange(40) < 20, tuple(map(str, range(40))))
    for call, match in [
        (lambda: transfer([sets[0], same], ("logistic",)), "share 60 groups"),
        (lambda: transfer([sets[0], wide], ("logistic",)), "features"),
        (lambda: transfer([sets[0], same], ("1 latent",)), "needs codes"),
        (lambda: transfer([sets[0], sets[0]], ("logistic",)), "name of its own"),
        (lambda: transfer(sets[:2], ("worst domain",)), "give three"),
        (lambda: transfer(sets, ("tree",)), "family 'tree'"),
        (lambda: Labelled("x", torch.full((2, 1), torch.nan), np.array([True, False]), ("a", "b")), "nan"),
        (lambda: Labelled("x", torch.zeros(2, 1), np.array([True]), ("a", "b")), "1 labels"),
        (lambda: transfer_data(domains=1), "domains=1"),
        (lambda: data.rows(9, 10), "domain=9"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
