"""A circuit: the scores of all edges of one model for one behaviour, and which of them are kept."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from cutaway.circuits.wiring import Wiring
from cutaway.errors import CutawayError, UsageError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Header:
    """How a graph came about; scores of graphs with different headers do not compare."""

    model: str
    fingerprint: str
    wiring: Wiring
    method: str
    ablation: str = "corrupted"
    norm: str = "true"
    post_norm: str = "none"
    """``scale held`` where a norm stands behind attention: heads are counted with its scale at the run at hand."""
    measure: str = "logit_diff"
    positions: tuple[str, ...] = ()
    """Labels of the positions, where each has scores of its own."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        names = ("model", "fingerprint", "method", "ablation", "norm", "post_norm", "measure")
        plain = {name: getattr(self, name) for name in names}
        return {
            **plain,
            "wiring": self.wiring.to_dict(),
            "positions": list(self.positions),
            "settings": dict(self.settings),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Header":
        return cls(**{**data, "wiring": Wiring(**data["wiring"]), "positions": tuple(data["positions"])})


@dataclass(frozen=True)
class CircuitGraph:
    """One score for each edge, and a mask of the edges kept (all of them, until a selection is made)."""

    header: Header
    scores: Float[np.ndarray, "*pos writer reader"]
    """In units of the measure; meaningless where there is no edge."""
    mask: Bool[np.ndarray, "*pos writer reader"]

    def __post_init__(self) -> None:
        legal = self.header.wiring.legal
        want = (*([len(self.header.positions)] if self.header.positions else []), *legal.shape)
        if self.scores.shape != want:
            raise UsageError(f"scores of shape {list(self.scores.shape)}; this header needs {list(want)}")
        if not np.isfinite(self.scores[..., legal]).all():
            raise UsageError("scores contain NaN or infinity; the model's outputs overflowed")
        if self.mask.shape != want:
            raise UsageError(f"mask of shape {list(self.mask.shape)}; this header needs {list(want)}")
        object.__setattr__(self, "mask", self.mask & legal)

    @classmethod
    def whole(cls, header: Header, scores: Float[np.ndarray, "*pos writer reader"]) -> "CircuitGraph":
        """Return the graph with every edge kept."""
        return cls(header, scores, np.ones(scores.shape, dtype=bool))

    def __repr__(self) -> str:
        return f"CircuitGraph({self.header.model!r}, {self.n_kept} of {self.n_edges} edges, {self.header.method})"

    @property
    def wiring(self) -> Wiring:
        return self.header.wiring

    @property
    def n_edges(self) -> int:
        return self.wiring.n_edges * max(1, len(self.header.positions))

    @property
    def n_kept(self) -> int:
        return int(self.mask.sum())

    def keep(self, mask: Bool[np.ndarray, "*pos writer reader"]) -> "CircuitGraph":
        """Return the same graph with other edges kept."""
        return replace(self, mask=mask)

    def edges(self) -> Iterator[tuple[str, str, float]]:
        """Yield ``(writer, reader, score)`` of the kept edges, by falling absolute score; positions are summed."""
        mask = self.mask.any(0) if self.mask.ndim == 3 else self.mask
        scores = np.where(self.mask, self.scores, 0).sum(0) if self.mask.ndim == 3 else self.scores
        where = np.argwhere(mask)
        order = np.argsort(-np.abs(scores[mask]), kind="stable")
        for writer, reader in where[order]:
            yield self.wiring.writers[writer], self.wiring.readers[reader], float(scores[writer, reader])

    def to_frame(self) -> "pd.DataFrame":
        """Return the kept edges, one row each."""
        import pandas as pd

        return pd.DataFrame(self.edges(), columns=["writer", "reader", "score"])

    def save(self, path: str | Path) -> None:
        """Write scores, mask and header to one safetensors file."""
        from safetensors.numpy import save_file

        tensors = {"scores": self.scores.astype(np.float32), "mask": np.ascontiguousarray(self.mask)}
        save_file(tensors, path, metadata={"circuit": json.dumps(self.header.to_dict())})

    @classmethod
    def load(cls, path: str | Path) -> "CircuitGraph":
        """Read what `save` wrote; CutawayError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                header = Header.from_dict(json.loads((file.metadata() or {})["circuit"]))
                return cls(header, file.get_tensor("scores"), file.get_tensor("mask"))
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CutawayError(f"{path} is not a circuit written by CircuitGraph.save: {error}") from error
