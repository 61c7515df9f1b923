"""Pursuit equals ten lines of NumPy, by Gram matrix and directly; variants do what they say."""

import numpy as np
import pytest
import torch

from cutaway.errors import UsageError
from cutaway.features.itda import pursue, pursue_directly

N, D, K = 200, 32, 12


def drawn(n: int = N, d: int = D, rows: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)
    return torch.randn(rows, d, generator=generator) * 3, atoms


def in_ten_lines(x: np.ndarray, atoms: np.ndarray, k: int) -> np.ndarray:
    codes = np.zeros((len(x), len(atoms)))
    for row, start in enumerate(x.astype(float)):
        left = start.copy()
        for _ in range(k):
            c = atoms.astype(float) @ left
            j = np.abs(c).argmax()
            codes[row, j] += c[j]
            left = left - c[j] * atoms[j]
    return codes


@pytest.mark.parametrize("n", [N, 6])
def test_equals_ten_lines_of_numpy(n: int) -> None:
    x, atoms = drawn(n)
    expected = in_ten_lines(x.numpy(), atoms.numpy(), K)
    for codes in (pursue(x, atoms, K), pursue(x, atoms, K, gram=atoms @ atoms.T), pursue_directly(x, atoms, K)):
        assert np.abs(codes.dense().numpy() - expected).max() < 1e-5 * np.abs(expected).max()
        assert (codes.values < 0).any()
        for indices, values in zip(codes.indices, codes.values, strict=True):
            used = indices[values != 0]
            assert len(used.unique()) == len(used)  # an atom taken again is merged
    if n == 6:
        assert float(codes.l0.max()) < K


def test_errors_fall_and_orthogonal_is_best() -> None:
    x, atoms = drawn()

    def missed(k: int, variant: str) -> float:
        return float((x - pursue(x, atoms, k, variant=variant).dense() @ atoms).square().sum())

    for variant in ("matching", "nonnegative", "orthogonal"):
        path = [missed(k, variant) for k in (1, 4, 12)]
        assert path[0] > path[1] > path[2]
    assert missed(8, "orthogonal") < missed(8, "matching")
    assert (pursue(x, atoms, K, variant="nonnegative").values >= 0).all()
    left = x - pursue(x, atoms, 5, variant="orthogonal").dense() @ atoms
    chosen = pursue(x, atoms, 5, variant="orthogonal")
    products = (atoms[chosen.indices] * left[:, None]).sum(-1)
    assert products.abs().max() < 1e-4  # what is left is at right angles to every atom chosen


def test_bad_input() -> None:
    x, atoms = drawn()
    with pytest.raises(UsageError, match="k=0"):
        pursue(x, atoms, 0)
    with pytest.raises(UsageError, match="rows of 31 dimensions; these atoms have 32"):
        pursue(x[:, 1:], atoms, 2)
    with pytest.raises(UsageError, match="NaN"):
        pursue(x * torch.nan, atoms, 2)
    with pytest.raises(UsageError, match="did you mean 'orthogonal'"):
        pursue(x, atoms, 2, variant="orthogonl")
    assert pursue(x, atoms[:0], 3).n_latents == 0
    assert not pursue(x * 0, atoms, 3).values.any()
