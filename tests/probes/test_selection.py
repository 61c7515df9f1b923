"""Screening against scikit-learn, selection without favour, k-sparse probes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cutaway.errors import UsageError
from cutaway.features import Codes
from cutaway.probes.sae_answerability.calibration import selection_on_coins
from cutaway.probes.selection import codes_of, columns, fit_k_sparse, grouped_folds, nested, screen


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
def test_screening_equals_the_library_for_every_latent(seed):
    """Ties, negative values, silent latents, rows of several widths."""
    rng = np.random.default_rng(seed)
    rows, latents, slots = int(rng.integers(6, 40)), 30, 6
    indices = np.stack([rng.choice(latents - 2, slots, replace=False) for _ in range(rows)])
    values = np.round(rng.standard_normal((rows, slots)), 1) * (rng.random((rows, slots)) < 0.7)
    codes = Codes(torch.from_numpy(indices), torch.from_numpy(values), latents)
    labels = np.arange(rows) % 2 == 0
    dense = codes.dense().numpy()
    wanted = [roc_auc_score(labels, dense[:, i]) for i in range(latents)]
    found = screen(codes, labels)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert found[-2:].tolist() == [0.5, 0.5]


def test_selection_on_coins_is_fair_only_when_nested():
    found = [selection_on_coins(seed, rows=300, latents=200) for seed in range(20)]
    assert np.mean([each.honest for each in found]) == pytest.approx(0.5, abs=0.02)
    assert min(each.naive for each in found) > 0.55
    assert np.mean([each.naive <= each.null_95 + 0.02 for each in found]) > 0.8


def test_a_real_latent_is_chosen_in_every_fold():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2 == 0
    dense = rng.standard_normal((200, 50))
    dense[:, 7] -= 2.0 * labels
    found = nested(codes_of(torch.from_numpy(dense)), labels, [str(i) for i in range(200)], shuffles=5)
    assert set(found.chosen) == {7}
    assert found.honest > 0.88
    probe = fit_k_sparse(codes_of(torch.from_numpy(dense)), labels, 1)
    assert probe.latents == (7,)
    assert probe.weight[0] < 0


def test_columns_are_the_dense_ones():
    codes = Codes(torch.tensor([[3, 1], [1, 0]]), torch.tensor([[2.0, 5.0], [7.0, 0.0]]), 4)
    assert columns(codes, [1, 3, 2]).tolist() == [[5, 2, 0], [7, 0, 0]]


def test_a_latent_that_never_changes_says_nothing():
    probe = fit_k_sparse(codes_of(torch.ones(10, 2)), np.arange(10) < 5, 1)
    assert len(set(probe.scores(codes_of(torch.ones(4, 2))).tolist())) == 1


def test_groups_stay_whole():
    groups = [str(i // 3) for i in range(60)]
    for held in grouped_folds(groups, 5, 0):
        inside = {g for g, h in zip(groups, held, strict=True) if h}
        outside = {g for g, h in zip(groups, held, strict=True) if not h}
        assert not inside & outside


def test_bad_input():
    codes, labels = codes_of(torch.randn(10, 3)), np.arange(10) < 5
    for call, match in [
        (lambda: screen(codes, labels[:4]), "4 labels for 10 rows"),
        (lambda: screen(codes, np.arange(10)), "true or false|[Tt]ype-check"),
        (lambda: screen(codes, np.zeros(10, dtype=bool)), "both classes"),
        (lambda: screen(codes_of(torch.full((10, 3), torch.nan)), labels), "nan"),
        (lambda: fit_k_sparse(codes, labels, 9), "k=9"),
        (lambda: fit_k_sparse(codes, labels, latents=[2]).scores(codes_of(torch.randn(3, 2))), "have 2"),
        (lambda: grouped_folds(["a"] * 10, 2, 0), "number of groups"),
    ]:
        with pytest.raises((UsageError, TypeError), match=match):
            call()
