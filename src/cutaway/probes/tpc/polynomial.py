"""The monitor: a polynomial of an activation, kept as factors, that can be cut off after any order.

    P1(z) = bias + weight . z          Pn(z) = P(n-1)(z) + sum over r of weights_n[r] * (factors_n[r] . z) ** n

with z the standardised activation. Source: card tpc (2509.26238), Method.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cutaway.errors import UsageError

_LARGEST = 20_000_000
"""Entries of the largest explicit tensor."""


@dataclass(frozen=True, eq=False)
class Term:
    """One order: a symmetric tensor as a sum of ``rank`` powers."""

    factors: Float[Tensor, "rank d"]
    weights: Float[Tensor, " rank"]


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A trained monitor; its scores are logits, positive for the class that is watched for."""

    centre: Float[Tensor, " d"] = field(repr=False)
    scale: Float[Tensor, " d"] = field(repr=False)
    weight: Float[Tensor, " d"] = field(repr=False)
    bias: float
    terms: tuple[Term, ...] = field(repr=False)
    """Of order 2, 3, ..."""
    mode: str = "strict"
    """How it was trained: ``strict`` (each order after the last was frozen) or ``joint``."""

    @property
    def order(self) -> int:
        return 1 + len(self.terms)

    @property
    def d(self) -> int:
        return len(self.weight)

    @property
    def multiplies(self) -> tuple[int, ...]:
        """Multiplies that each order adds: d, then d * rank + rank."""
        return (self.d, *(term.factors.numel() + len(term.weights) for term in self.terms))

    @property
    def parameters(self) -> tuple[int, ...]:
        """Parameters that each order adds."""
        return (self.d + 1, *self.multiplies[1:])

    def standardised(self, x: Float[Tensor, "row width"]) -> Float[Tensor, "row d"]:
        """Return z of raw activations; UsageError for another width or a value that is not finite."""
        if x.shape[1] != self.d:
            raise UsageError(f"activations have {x.shape[1]} features and the monitor was trained on {self.d}")
        check_finite(x)
        return (x - self.centre) / self.scale

    def term(self, order: int, z: Float[Tensor, "row d"]) -> Float[Tensor, " row"]:
        """Return what one order adds to the score of each standardised row."""
        if not 1 <= order <= self.order:
            raise UsageError(f"order={order}: this monitor has 1 to {self.order}")
        if order == 1:
            return z @ self.weight + self.bias
        chosen = self.terms[order - 2]
        return power(z, chosen.factors, chosen.weights, order)

    @torch.no_grad()
    def logits(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "order row"]:
        """Return the score of every truncation; the last row is the whole polynomial."""
        z = self.standardised(x)
        scores = [self.term(1, z)]
        for order in range(2, self.order + 1):
            scores.append(scores[-1] + self.term(order, z))
        return torch.stack(scores)

    def truncated(self, order: int) -> "Polynomial":
        """Return the monitor of this order alone."""
        if not 1 <= order <= self.order:
            raise UsageError(f"order={order}: this monitor has 1 to {self.order}")
        return replace(self, terms=self.terms[: order - 1])

    def tensor(self, order: int) -> Float[Tensor, "..."]:
        """Return the symmetric coefficient tensor of one order, in fp64; UsageError where it would be too large."""
        if not 2 <= order <= self.order:
            raise UsageError(f"order={order}: tensors exist for 2 to {self.order}")
        if self.d**order > _LARGEST:
            raise UsageError(f"a tensor of {self.d} ** {order} entries is too large; ask for order 2")
        factors, total = self.terms[order - 2].factors.double(), self.terms[order - 2].weights.double()
        product = factors
        for _ in range(order - 1):
            product = product[..., None] * factors.reshape(len(factors), *[1] * (product.dim() - 1), self.d)
        return torch.tensordot(total, product, dims=1)

    def attribution(self, x: Float[Tensor, "row d"]) -> Float[Tensor, "row d d"]:
        """Return M_ij z_i z_j of each row: what each pair of features gives to the order-2 term, exactly."""
        z = self.standardised(x).double()
        return self.tensor(2) * z[:, :, None] * z[:, None, :]

    def strongest(self, order: int, n: int = 5) -> list[tuple[tuple[int, ...], float]]:
        """Return the ``n`` products of different features with the largest coefficients, and these coefficients.

        The coefficient of a product counts all orderings of its features (2 M_ij for a pair).
        """
        tensor = self.tensor(order)
        tuples = torch.combinations(torch.arange(self.d), order)
        ways = float(torch.arange(1, order + 1).prod())
        found = ways * tensor[tuple(tuples.T)]
        best = found.abs().topk(min(n, len(found))).indices
        return [(tuple(tuples[i].tolist()), float(found[i])) for i in best.tolist()]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {"centre": self.centre, "scale": self.scale, "weight": self.weight}
        for order, term in enumerate(self.terms, 2):
            tensors |= {f"factors.{order}": term.factors, f"weights.{order}": term.weights}
        about = {"bias": self.bias, "mode": self.mode, "order": self.order}
        save_file({name: each.contiguous() for name, each in tensors.items()}, path, {"about": json.dumps(about)})


def load_polynomial(path: str | Path) -> Polynomial:
    """Read what `Polynomial.save` wrote; UsageError for any other file."""
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get("about", "{}"))
        if not {"bias", "mode", "order"} <= about.keys():
            raise UsageError(f"{Path(path).name} holds no polynomial monitor")
        terms = tuple(
            Term(file.get_tensor(f"factors.{order}"), file.get_tensor(f"weights.{order}"))
            for order in range(2, about["order"] + 1)
        )
        centre, scale, weight = (file.get_tensor(name) for name in ("centre", "scale", "weight"))
    return Polynomial(centre, scale, weight, about["bias"], terms, about["mode"])


def power(
    z: Float[Tensor, "row d"], factors: Float[Tensor, "rank d"], weights: Float[Tensor, " rank"], order: int
) -> Float[Tensor, " row"]:
    """Return sum over r of weights[r] * (factors[r] . z) ** order."""
    return (z @ factors.T).pow(order) @ weights


def check_finite(x: Float[Tensor, "row d"]) -> None:
    """UsageError that names the first value that is nan or infinite."""
    bad = (~torch.isfinite(x)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise UsageError(f"activation of row {row}, feature {column} is {float(x[row, column])}; leave such rows out")


def pairs_of(terms: Sequence[tuple[float, tuple[int, ...]]], order: int) -> set[tuple[int, ...]]:
    """Return the products of ``order`` different features among ``terms``, features sorted."""
    return {tuple(sorted(set(c))) for _, c in terms if len(c) == order and len(set(c)) == order}
