"""Likeness by brute force and by hand; recovery, reproducibility, consensus, function, collapse; bad input."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import UsageError
from cutaway.features import SparseDictionary
from cutaway.features.mfr_sae import (
    consensus,
    duplicates,
    effective_rank,
    functional,
    likeness,
    pairs,
    recovery,
    reproducibility,
)


def drawn(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("matching", ["hungarian", "maximum"])
def test_identical_permuted_and_random(matching: str) -> None:
    atoms = drawn(64, 32)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert likeness(atoms, atoms, matching) == pytest.approx(1.0, abs=1e-5)
    assert likeness(atoms, 3 * atoms[order], matching) == pytest.approx(1.0, abs=1e-5)
    assert likeness(drawn(128, 256, 2), drawn(128, 256, 3), matching) < 0.3


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 50))
def test_one_to_one_is_never_above_the_nearest(n: int, d: int, seed: int) -> None:
    one, two = drawn(n, d, seed), drawn(n, d, seed + 100)
    assert likeness(one, two, "hungarian") <= likeness(one, two, "maximum") + 1e-6


def test_the_assignment_is_the_best_of_all() -> None:
    one, two = drawn(7, 5), drawn(7, 5, 1)
    unit = torch.nn.functional.normalize
    table = unit(one, dim=-1) @ unit(two, dim=-1).T
    best = max(float(table[range(7), list(order)].mean()) for order in itertools.permutations(range(7)))
    assert likeness(one, two, "hungarian") == pytest.approx(best, abs=1e-6)
    nearest = (table.amax(1).mean() + table.amax(0).mean()) / 2
    assert likeness(one, two, "maximum") == pytest.approx(float(nearest), abs=1e-6)


def test_recovery_by_hand() -> None:
    true = torch.eye(4)
    found = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 1.0, 1.0, 0]])
    got = recovery(found, true)
    half = 2**-0.5
    assert got.mean == pytest.approx((1 + half + half + 0) / 4)
    assert got.above == 0.25
    assert got.one_to_one == pytest.approx((1 + half) / 4)  # the third atom found has no true one left


def test_what_one_seed_invented_scores_low() -> None:
    shared = torch.eye(16)[:4]
    one = torch.cat([shared, torch.eye(16)[5:6]])
    two = torch.cat([shared.flip(0), torch.eye(16)[7:8]])
    scores = reproducibility([one, two])
    assert scores[0].tolist() == pytest.approx([1, 1, 1, 1, 0])
    assert consensus([one, two]) == ((1, 1.0), (2, pytest.approx(0.8)))
    three = reproducibility([one, two, torch.eye(16)[5:6]])
    assert three[0][4] == 1.0
    assert dict(consensus([one, two, torch.eye(16)[5:6]]))[3] == 0.0


def dictionary(seed: int) -> SparseDictionary:
    return SparseDictionary(8, 20, "relu", seed=seed).requires_grad_(False)


def test_function_is_compared_on_rows() -> None:
    rows = drawn(200, 8)
    same = functional(dictionary(0), dictionary(0), rows)
    assert torch.allclose(same, torch.ones(20), atol=1e-5)
    one, two = dictionary(0), dictionary(1)
    values = [each.encode(rows).dense() for each in (one, two)]
    table = torch.corrcoef(torch.cat([v.T for v in values]))[:20, 20:]
    assert torch.allclose(functional(one, two, rows), table.amax(1), atol=1e-4)
    one.b_enc[3] = -100.0  # never fires
    assert functional(one, two, rows).isnan().nonzero().flatten().tolist() == [3]


def test_collapse_shows() -> None:
    atoms = torch.cat([torch.eye(6), torch.eye(6)[:2]])
    assert duplicates(atoms) == 0.5
    assert effective_rank(torch.eye(6)) == pytest.approx(6.0)
    assert effective_rank(torch.ones(5, 6)) == pytest.approx(1.0, abs=1e-3)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="of 4 and of 5 dimensions"):
        pairs(drawn(3, 4), drawn(3, 5))
    with pytest.raises(UsageError, match="did you mean 'maximum'"):
        pairs(drawn(3, 4), drawn(3, 4), "maximun")
    with pytest.raises(UsageError, match="nothing to compare"):
        likeness(drawn(3, 4), torch.zeros(0, 4))
    with pytest.raises(UsageError, match="two or more"):
        reproducibility([drawn(3, 4)])
