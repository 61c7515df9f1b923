"""The linear probe as a file and as a monitor."""

import json

import numpy as np
import pytest
import torch

from cutaway.errors import CutawayError, UsageError
from cutaway.planted import linear_direction
from cutaway.probes import LinearProbe, activations, fit_probe, load_probe
from cutaway.probes.pooled import running


@pytest.fixture(scope="module")
def planted():
    return linear_direction()


def read(planted, concept, n, seed, pooling="last"):
    texts = planted.texts(n, concept=concept, seed=seed)
    return activations(planted.model, texts, planted.truth.site, pooling)[planted.truth.site, pooling]


@pytest.fixture(scope="module")
def probe(planted):
    with_it, without = read(planted, True, 60, 0), read(planted, False, 60, 0)
    y = torch.arange(120) < 60
    return fit_probe(torch.cat([with_it, without]), y, planted.truth.site, "last", concept="weather")


def test_the_planted_direction_is_found_on_other_texts(planted, probe):
    above, below = probe.scores(read(planted, True, 50, 1)), probe.scores(read(planted, False, 50, 1))
    assert float(above.min()) > float(below.max())
    mean = fit_probe(
        torch.cat([read(planted, True, 60, 0), read(planted, False, 60, 0)]),
        torch.arange(120) < 60,
        planted.truth.site,
        "last",
        family="mean difference",
    )
    assert float(mean.scores(read(planted, True, 50, 1)).min()) > float(mean.scores(read(planted, False, 50, 1)).max())


def test_scores_are_the_formula_whatever_the_axes():
    probe = LinearProbe(torch.tensor([1.0, -2.0]), 0.5, "resid_post.0")
    x = torch.arange(12.0).reshape(3, 2, 2)
    assert torch.equal(probe.scores(x), x[..., 0] - 2 * x[..., 1] + 0.5)


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_running_scores_are_the_scores_of_the_running_pool(pooling):
    probe = LinearProbe(torch.randn(5), 0.3, "resid_post.0", pooling)
    x = torch.randn(7, 5)
    assert torch.allclose(probe.running(x), probe.scores(running(x, pooling)), atol=1e-5)


def test_the_threshold_keeps_its_rate():
    rng = np.random.default_rng(0)
    probe, rates = LinearProbe(torch.tensor([1.0]), 0.0, "resid_post.0"), []
    for _ in range(200):
        alarmed = probe.alarmed(torch.from_numpy(rng.standard_normal((150, 1))).float(), 0.05)
        rates.append(float(alarmed.alarms(torch.from_numpy(rng.standard_normal((400, 1))).float()).float().mean()))
    assert 0.03 < np.mean(rates) <= 0.055


def test_a_saved_probe_comes_back(tmp_path, probe, planted):
    kept = probe.alarmed(read(planted, False, 120, 3), 0.01)
    kept.save(tmp_path / "p")
    back = load_probe(tmp_path / "p")
    assert torch.equal(back.weight, kept.weight)
    assert back.to_dict() == kept.to_dict()
    assert "1% false alarms" in repr(back)
    (tmp_path / "p" / "probe.json").write_text(json.dumps({**kept.to_dict(), "d": 3}))
    with pytest.raises(CutawayError, match="where 3 are stated"):
        load_probe(tmp_path / "p")
    with pytest.raises(CutawayError, match="holds no probe"):
        load_probe(tmp_path)


def test_a_feature_that_never_changes_has_no_weight():
    x = torch.randn(40, 3)
    x[:, 1] = 7.0
    probe = fit_probe(x, x[:, 0] > 0, "resid_post.0")
    assert probe.weight[1] == 0
    assert bool(torch.isfinite(probe.scores(x)).all())


def test_bad_input(probe):
    x, y = torch.randn(6, 2), torch.arange(6) < 3
    for call, match in [
        (lambda: fit_probe(x, y[:5], "resid_post.0"), "6 rows and 5 labels"),
        (lambda: fit_probe(x, torch.zeros(6, dtype=torch.bool), "resid_post.0"), "both classes"),
        (lambda: fit_probe(x * torch.nan, y, "resid_post.0"), "nan"),
        (lambda: fit_probe(x, y, "resid_post.0", strength=0.0), "strength"),
        (lambda: probe.scores(x), "2 features"),
        (lambda: probe.scores(torch.full((1, probe.d), torch.nan)), "nan"),
        (lambda: probe.alarms(torch.zeros(1, probe.d)), "no threshold"),
        (lambda: probe.alarmed(torch.zeros(5, probe.d), 0.01), "needs 99"),
        (lambda: LinearProbe(torch.zeros(2), 0.0, "resid_post.0", threshold=1.0), "false-alarm rate"),
        (lambda: LinearProbe(torch.zeros(2), float("nan"), "resid_post.0"), "nan"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()
