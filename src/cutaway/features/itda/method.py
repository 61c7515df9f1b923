"""ITDA: a dictionary of real activations, chosen in one pass over text, without training.

1. Code each activation by matching pursuit over the atoms so far (`pursuit`).
2. Its error is ``e = mean over dimensions of (x/|x| - x_hat/|x_hat|)^2 = 2 (1 - cos) / d``, at most 4 / d.
3. Where ``e > tau``, that is where the cosine is below ``1 - tau d / 2``, add x / |x| with its label.
4. Stop at ``max_atoms`` or at the end of the text.

The paper (Leask, Nanda, Al Moubayed 2025, arXiv 2505.17769) fills the first atoms from the most frequent rows and
adds all rows above the threshold of one batch at once. Here rows are taken strictly in order and an atom counts from
the next row on: no near-duplicates enter together, an activation that comes again is coded by its first occurrence,
and the result does not depend on the batch size. A further cap refuses rows whose cosine with one atom is already
``cap``. Padding and special tokens are left out where activations are captured. An activation depends on the tokens
up to its own (in causal models), so their hash is the label.

Limits: an atom is an activation, not a factor of activations. Where sums of factors are common and single factors
rare, atoms are sums, and signed coefficients code a later single factor by their differences, so it is not added. On
planted rows (256 factors in 64 dimensions, sums of four, 5% single) the share of single factors recovered is 0.06 at
the paper's threshold with k = 8, and passes 0.95 only where nearly every row becomes an atom; with half of the rows
single (of 128 factors) it is 1.0 from 440 atoms for 6,000 rows. A threshold above the largest possible error adds
nothing, and is refused. Codes are signed; the residual stream's mean is not subtracted, as published.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.corpus import Corpus
from cutaway.features.dictionary import Provenance
from cutaway.features.harvest import Rows, provenance_of, site_names, stream
from cutaway.features.itda.atoms import Atom, AtomDictionary
from cutaway.features.itda.pursuit import chase
from cutaway.model import Model

_BLOCK = 256
_CONTEXT = 24
"""Tokens kept in front of an atom's token, to read it by."""


@dataclass(frozen=True)
class Built:
    """A dictionary and what building it took."""

    dictionary: AtomDictionary
    tokens: int
    """Rows seen."""
    skipped: int
    """Rows without a direction (zero, NaN or infinite), left out."""
    used: tuple[int, ...]
    """How often each atom was used while building."""
    growth: tuple[tuple[int, int], ...]
    """(rows seen, atoms) along the way."""
    complete: bool = True
    """False when Ctrl-C ended it early."""

    def __repr__(self) -> str:
        return f"Built({self.dictionary!r}, {self.tokens:,} rows, {self.skipped} skipped)"


def error_of(rows: Float[Tensor, "row d"], rebuilt: Float[Tensor, "row d"]) -> Float[Tensor, " row"]:
    """Return ``2 (1 - cos) / d`` of each row with its reconstruction; 2 / d where that is zero."""
    cosine = torch.nn.functional.cosine_similarity(rows.double(), rebuilt.double(), dim=-1, eps=1e-30)
    return 2 * (1 - cosine) / rows.shape[1]


def cosine_of(tau: float, d: int) -> float:
    """Return the cosine below which ``tau`` adds an atom at width ``d``; UsageError where none could be."""
    if not 0 < tau < 4 / d:
        raise UsageError(f"tau={tau}: between 0 and 4/d = {4 / d:.3g}, the largest error there is at d={d}")
    return 1 - tau * d / 2


def build(
    model: Model,
    corpus: Corpus,
    sites: str | Sequence[str],
    *,
    k: int = 40,
    cosine: float = 0.846,
    tau: float | None = None,
    max_atoms: int = 4096,
    cap: float = 0.98,
    tokens: int | None = None,
    length: int = 128,
    batch: int = 16,
    tick: Callable[[int, int], None] = lambda rows, atoms: None,
) -> dict[str, Built]:
    """Build a dictionary at every one of ``sites`` from one pass over ``corpus``; Ctrl-C keeps what is built.

    ``tau`` in the paper's units may stand in for ``cosine``. ``tick`` is told rows seen and atoms of the first site.
    """
    names = site_names(model, sites)
    builders: dict[str, Builder] = {}
    complete = True
    try:
        for rows in stream(model, corpus, names, tokens=tokens, length=length, batch=batch):
            for site, values in rows.values.items():
                if site not in builders:
                    wanted = cosine if tau is None else cosine_of(tau, values.shape[1])
                    builders[site] = Builder(values.shape[1], k=k, cosine=wanted, max_atoms=max_atoms, cap=cap)
                builders[site].add(values, partial(name_of, model, rows))
            first = builders[names[0]]
            tick(first.tokens, first.n)
            if all(builder.full for builder in builders.values()):
                break
    except KeyboardInterrupt:
        complete = False
    if not builders:
        raise UsageError(f"{corpus!r}: no token of text was read")
    vocabulary = tokenizer_digest(model)
    return {
        site: builder.built(vocabulary, provenance_of(model, corpus, site), complete)
        for site, builder in builders.items()
    }


class Builder:
    """Atoms in the making: rows in, in order, atoms out."""

    def __init__(self, d: int, *, k: int = 40, cosine: float = 0.846, max_atoms: int = 4096, cap: float = 0.98) -> None:
        for name, value, low in (("cosine", cosine, -1.0), ("cap", cap, 0.0)):
            if not low < value <= 1:
                raise UsageError(f"{name}={value}: above {low:g} and at most 1")
        if k < 1 or max_atoms < 1:
            raise UsageError(f"k={k}, max_atoms={max_atoms}: 1 or more")
        self.k, self.cosine, self.cap, self.d = k, cosine, cap, d
        self.n = self.tokens = self.skipped = 0
        self.names: list[Atom] = []
        self.used = np.zeros(max_atoms, dtype=np.int64)
        self.growth: list[tuple[int, int]] = []
        self._atoms = np.zeros((max_atoms, d), dtype=np.float32)
        self._gram = np.zeros((max_atoms, max_atoms), dtype=np.float32)

    @property
    def full(self) -> bool:
        """Whether no atom can be added any more."""
        return self.n == len(self._atoms)

    def add(self, rows: Float[Tensor, "row d"], name: Callable[[int], Atom]) -> None:
        """Take rows in order; ``name`` tells of row i, and is called for those that become atoms."""
        for start in range(0, len(rows), _BLOCK):
            if self.full:
                return
            block = np.array(rows[start : start + _BLOCK].detach().float().cpu().numpy(), dtype=np.float32)
            block[~np.isfinite(block).all(1)] = 0.0
            self._block(block, start, name)
            self.growth.append((self.tokens, self.n))

    def built(self, tokenizer: str, provenance: Provenance, complete: bool = True) -> Built:
        """Return the dictionary so far."""
        settings = {"k": self.k, "cosine": self.cosine, "cap": self.cap, "max_atoms": len(self._atoms)}
        atoms = torch.from_numpy(self._atoms[: self.n].copy())
        about = replace(provenance, tokens=self.tokens, settings=settings)
        made = AtomDictionary(atoms, tuple(self.names), self.k, self.cosine, tokenizer, about)
        used = tuple(self.used[: self.n].tolist())
        return Built(made, self.tokens, self.skipped, used, tuple(self.growth), complete)

    def _block(self, block: np.ndarray, start: int, name: Callable[[int], Atom]) -> None:
        # Products with the atoms of now in one go; those with an atom added in between are filled in as it comes.
        products = np.zeros((len(block), min(len(self._atoms), self.n + len(block))), dtype=np.float32)
        products[:, : self.n] = block @ self._atoms[: self.n].T
        norms = np.linalg.norm(block.astype(np.float64), axis=1)
        for i, norm in enumerate(norms):
            if self.full:
                return
            self.tokens += 1
            if norm == 0:
                self.skipped += 1
                continue
            own = products[i, : self.n].copy()
            closest = float(np.abs(own).max()) / norm if self.n else 0.0
            chosen = chase(own, self._gram, self.k) if self.n else {}
            self.used[list(chosen)] += 1
            if closest < self.cap and self._cosine(products[i], chosen, norm) < self.cosine:
                self._append(block[i] / norm, name(start + i))
                products[i + 1 :, self.n - 1] = block[i + 1 :] @ self._atoms[self.n - 1]

    def _cosine(self, products: np.ndarray, chosen: dict[int, float], norm: float) -> float:
        """Return the cosine of a row with its reconstruction, from products alone."""
        if not chosen:
            return 0.0
        atoms, values = list(chosen), np.array(list(chosen.values()), dtype=np.float64)
        inside = float(values @ self._gram[np.ix_(atoms, atoms)].astype(np.float64) @ values)
        return float(values @ products[atoms]) / (norm * max(inside, 1e-30) ** 0.5)

    def _append(self, atom: np.ndarray, name: Atom) -> None:
        n = self.n
        self._atoms[n] = atom
        with_all = self._atoms[: n + 1] @ self._atoms[n]
        self._gram[n, : n + 1] = with_all
        self._gram[: n + 1, n] = with_all
        self.names.append(name)
        self.n += 1


def tokenizer_digest(model: Model) -> str:
    """Return a hash of the tokenizer's vocabulary."""
    if model.tokenizer is None:
        raise UsageError(f"model {model.name!r} has no tokenizer; atoms are named by their tokens")
    return hashlib.sha256(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def label_of(ids: Iterable[int]) -> str:
    """Return the label of the last of these tokens."""
    return hashlib.sha256(np.asarray(list(ids), dtype="<i8").tobytes()).hexdigest()[:24]


def name_of(model: Model, rows: Rows, at: int) -> Atom:
    """Return the name of row ``at``: the text it stands in."""
    window = rows.contexts[int(rows.context[at])]
    position = int(rows.position[at])
    return Atom(
        label_of(window.ids[: position + 1]),
        window.document,
        window.ends[position] if window.ends else -1,
        model.decode(window.ids[max(0, position - _CONTEXT) : position]) if position else "",
        model.decode(window.ids[position : position + 1]),
    )
