"""The refusal direction: found, taken out, added, read; oracles by hand."""

import numpy as np
import pytest
import torch
from asked import LONG, ask, planted, readout
from sklearn.metrics import roc_auc_score

from cutaway.errors import UsageError
from cutaway.planted.dilution import dilution
from cutaway.reasoning.cot_hijacking.direction import (
    ablation,
    auc,
    check_direction,
    components,
    fit_direction,
    standardise,
    tail_tokens,
)
from cutaway.reasoning.cot_hijacking.reading import Readout, first_tokens, probability, refusal_odds
from cutaway.reasoning.starts import batches, last_logits

SEEDS = (0, 1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_planted_direction_is_found_and_its_removal_ends_refusal(seed: int) -> None:
    """Acceptance 4: |<h, v>| < 1e-4 relative at every layer; random directions move refusal by less than 0.05."""
    each = planted(seed=seed)
    bad, good = ([p.ids for p in ask(each, 0, forbidden=forbidden)] for forbidden in (True, False))
    found = fit_direction(each.model, bad[:6], good[:6], readout(each), validation=(bad[6:9], good[6:9]))
    assert abs(found.vector @ each.truth.direction) > 0.95
    assert found.auc == 1
    assert found.position == -1
    assert found.layer >= min(layer for layer, _ in each.truth.heads)
    test = check_direction(each.model, found, bad[9:], good[9:], readout(each), randoms=8, seed=seed)
    assert test.base.value > 0.99
    assert test.removed.value < -0.9
    assert test.added.value > 0.9
    assert max(abs(test.random_removed.value), abs(test.random_added.value)) < 0.05
    vector = found.tensor(each.model)
    batch = each.model.batch([bad[9]])
    sites = ["resid_pre.*", "resid_mid.*", "resid_post.*"]
    with torch.no_grad(), each.model.edited(*ablation(each.model, vector, bad)):
        stream = each.model.capture(batch, sites)
    for value in stream.values():
        assert float(((value @ vector).abs() / value.norm(dim=-1)).max()) < 1e-4


def test_components_follow_the_attention_share() -> None:
    """r at the last layer is share * strength, at every length."""
    each = dilution("length", seed=3)
    direction = torch.tensor(each.truth.direction).float()
    for tokens in (0, 60, LONG):
        prompts = ask(each, tokens)
        found = components(each.model, [p.ids for p in prompts], direction)
        expected = [each.truth.share(len(p.ids)) for p in prompts]
        assert found[:, -1] == pytest.approx(expected, abs=2e-3)
        assert found[:, 0] == pytest.approx(0, abs=2e-3)


def test_nothing_to_tell_apart_is_an_error() -> None:
    each = planted()
    rows = [p.ids for p in ask(each, 0)]
    with pytest.raises(UsageError, match="same activations"):
        fit_direction(each.model, rows[:2], rows[:2], readout(each), validation=(rows[:2], rows[2:4]))
    with pytest.raises(UsageError, match="for training and for validation"):
        fit_direction(each.model, rows[:2], [], readout(each), validation=(rows[:2], rows[2:4]))


def test_standard_units_and_auc() -> None:
    rng = np.random.default_rng(0)
    r, harmless = rng.standard_normal((5, 3)), rng.standard_normal((9, 3))
    expected = (r - harmless.mean(0)) / harmless.std(0, ddof=1)
    assert standardise(r, harmless) == pytest.approx(expected)
    assert np.isnan(standardise(r, np.ones((4, 3)))).all()
    with pytest.raises(UsageError, match="at least 2"):
        standardise(r, harmless[:1])
    scores, positive = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    found = auc(scores, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.low <= found.value <= found.high
    assert np.isnan(auc(scores, np.ones(40, dtype=bool)).value)


def test_readouts_by_hand() -> None:
    each = planted()
    rows = [p.ids for p in (*ask(each, 0), *ask(each, 40, forbidden=False))]
    with torch.no_grad():
        found = dict.fromkeys(range(len(rows)), torch.zeros(0))
        for members, batch in batches(each.model, rows):
            found |= dict(zip(members, last_logits(each.model, batch), strict=True))
        logits = torch.stack([found[i] for i in range(len(rows))])
        full = torch.cat([each.model.logits(each.model.batch([row]))[:, -1] for row in rows])
    assert torch.allclose(logits, full, atol=1e-4)
    ids = readout(each)
    assert refusal_odds(each.model, rows, ids) == pytest.approx(
        (full[:, ids.refuse[0]] - full[:, ids.comply[0]]).double().numpy(), abs=1e-4
    )
    against_all = Readout(ids.refuse)(full)
    p = full.double().softmax(-1)[:, ids.refuse[0]]
    assert torch.allclose(against_all, torch.log(p / (1 - p)), atol=1e-6)
    assert probability(np.array([0.0, 800.0, -800.0])) == pytest.approx([0.5, 1, 0])
    assert first_tokens(each.model, ["Explain tea", "Explain wool"]) == (each.model.encode("Explain")[0],)
    assert tail_tokens(each.model) == 1
