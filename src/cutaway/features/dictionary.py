"""What every dictionary of features offers: sparse codes out of activations, activations out of sparse codes.

Codes are the exchange type: for each row the indices of its active latents and their values. Anything that encodes
and decodes (a sparse autoencoder, a transcoder, atoms chosen from data) is used by the rest of the house through
`Dictionary` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import UsageError

if TYPE_CHECKING:
    from cutaway.model import Model


@dataclass(frozen=True)
class Codes:
    """Active latents of each row. Rows with fewer than ``slot`` of them are filled with value 0."""

    indices: Int[Tensor, "row slot"]
    values: Float[Tensor, "row slot"]
    n_latents: int

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape:
            raise UsageError(f"codes: indices {list(self.indices.shape)} and values {list(self.values.shape)} differ")

    def __len__(self) -> int:
        return self.indices.shape[0]

    def dense(self) -> Float[Tensor, "row latent"]:
        """Return one column for each latent; differentiable in the values."""
        rows = self.values.new_zeros(len(self), self.n_latents)
        return rows.scatter_add(1, self.indices, self.values)

    @property
    def l0(self) -> Float[Tensor, " row"]:
        """Number of active latents in each row."""
        return (self.values != 0).sum(-1).to(self.values.dtype)

    def keep(self, latents: Int[Tensor, " kept"]) -> "Codes":
        """Return the codes with every latent but these set to zero."""
        return Codes(self.indices, self.values * torch.isin(self.indices, latents), self.n_latents)


def sparse(dense: Float[Tensor, "row latent"], slots: int | None = None) -> Codes:
    """Return the active entries of ``dense``, largest first, as codes of ``slots`` (None: as many as needed)."""
    width = int((dense != 0).sum(-1).max()) if slots is None else slots
    top = dense.abs().topk(max(1, min(width, dense.shape[1])), dim=-1).indices
    return Codes(top, dense.gather(1, top), dense.shape[1])


@dataclass(frozen=True)
class Provenance:
    """Where a dictionary comes from: without it, its numbers cannot be checked."""

    model: str = ""
    fingerprint: str = ""
    """SHA-256 of the model's weights."""
    site: str = ""
    """Where it reads, as in `cutaway.model.sites`: ``resid_post.5``."""
    target: str = ""
    """Where a transcoder writes; empty where that is ``site``."""
    data: str = ""
    """SHA-256 of the text it was trained on."""
    tokens: int = 0
    """Activations seen in training."""
    special: bool = False
    """Whether special tokens were among them."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@runtime_checkable
class Dictionary(Protocol):
    """Sparse codes of activations at a site."""

    @property
    def provenance(self) -> Provenance: ...

    @property
    def n_latents(self) -> int: ...

    @property
    def d_in(self) -> int: ...

    @property
    def atoms(self) -> Float[Tensor, "latent d_out"]:
        """What each latent adds to the output, at value 1."""
        ...

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Return the active latents of each row; UsageError for rows of another width."""
        ...

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Return the activations that codes stand for, bias and scale included.

        ``x``, the rows they were made of, is needed by dictionaries with a skip connection or a norm of each row.
        """
        ...


def check_model(dictionary: Dictionary, model: "Model") -> None:
    """UsageError where ``dictionary`` does not belong to ``model``: another width, or other weights than it says."""
    about = dictionary.provenance
    if about.site.startswith("resid") and dictionary.d_in != model.d_model:
        raise UsageError(f"{dictionary!r} reads {dictionary.d_in} dimensions; {model.name} has {model.d_model}")
    if about.fingerprint not in ("", model.fingerprint):
        raise UsageError(
            f"{dictionary!r} was built on {about.model or 'another model'} with other weights than {model.name}"
        )
