"""How well a dictionary stands for the activations it codes, each number beside what simple baselines reach.

- FVU: squared error over squared distance from the mean, at the tokens of text.
- CE-loss score: ``(CE_zero - CE_spliced) / (CE_zero - CE_clean)``, with the reconstruction put in the activations'
  place and the model run on. 1 is a perfect stand-in, 0 no better than zeros.
- L0: latents active at a token; dead: latents active at none of the tokens seen (of so many tokens; more would wake
  some); density: how often latents are active, by class of token.

Baselines at the same L0 budget r: the top r principal components; the r best of as many random unit atoms, scaled by
one constant; the mean activation of each token id (L0 1). They are fitted on documents with even numbers, everything
is measured on the odd ones, and intervals take whole documents as their units.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import t
from torch import Tensor, nn

from cutaway.errors import UsageError
from cutaway.features.corpus import Corpus
from cutaway.features.dictionary import Codes, Dictionary
from cutaway.features.harvest import Context, Rows, activations, contexts, groups, site_names
from cutaway.model import Batch, Model, Replace, parse
from cutaway.stats import Interval, wilson

if TYPE_CHECKING:
    import pandas as pd

Rebuild = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(what the dictionary reads [row d_in], what it stands for [row d], token ids [row])`` to rows and their L0."""
BINS = (-5.0, -4.0, -3.0, -2.0, -1.0, 0.0)
"""Edges of the density histogram, log10 of the share of tokens; the first bin is open below."""


@dataclass(frozen=True)
class Score:
    """One dictionary or baseline."""

    name: str
    fvu: Interval
    l0: Interval
    ce_score: Interval | None
    """None where it was not asked for; nan where zeros do the model no harm."""

    def __repr__(self) -> str:
        spliced = "" if self.ce_score is None else f", CE score {self.ce_score}"
        return f"{self.name}: FVU {self.fvu}, L0 {self.l0.value:.1f}{spliced}"


@dataclass(frozen=True)
class Density:
    """Latents on one class of tokens."""

    kind: str
    tokens: int
    l0: Interval
    fvu: float
    """Squared error over the class's own squared distance from the mean of all tokens."""
    histogram: tuple[int, ...]
    """Latents by log10 density between `BINS`; those active nowhere in the class come first."""


@dataclass(frozen=True)
class Evaluation:
    """A dictionary beside its baselines."""

    site: str
    score: Score
    beside: tuple[Score, ...]
    """Other dictionaries on the same tokens."""
    baselines: tuple[Score, ...]
    dead: Interval
    """Share of latents; Wilson's interval over latents."""
    classes: tuple[Density, ...]
    tokens: int
    documents: int
    ce_clean: float | None
    ce_zero: float | None

    def __repr__(self) -> str:
        return f"Evaluation({self.score}, dead {self.dead.value:.1%}, {self.tokens:,} tokens)"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; unknown ends of intervals are None."""
        return _jsonable(asdict(self))

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n", encoding="utf-8")

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each dictionary and baseline."""
        import pandas as pd

        rows = []
        for each in (self.score, *self.beside, *self.baselines):
            row: dict[str, Any] = {"name": each.name}
            for name in ("fvu", "l0", "ce_score"):
                interval = getattr(each, name)
                ends = (np.nan,) * 3 if interval is None else (interval.value, interval.low, interval.high)
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
            rows.append(row)
        return pd.DataFrame(rows)


@torch.no_grad()
def evaluate(
    model: Model,
    dictionary: Dictionary,
    corpus: Corpus,
    *,
    site: str = "",
    target: str = "",
    tokens: int = 20_000,
    fit: int = 20_000,
    length: int = 128,
    batch: int = 8,
    spliced: bool = True,
    beside: Mapping[str, Dictionary] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure ``dictionary`` on at least ``tokens`` tokens, its baselines fitted on ``fit`` others.

    ``site`` and ``target`` default to the dictionary's own; dictionaries ``beside`` it, by name, are of the same place
    and are scored in the same passes. UsageError where the sites are unknown, where a width is another, or where the
    corpus has too few documents to keep fitting and measuring apart.
    """
    read, written = _sites(model, dictionary, site, target)
    windows = _in_turn(contexts(model, corpus, length))
    fitting = _rows(model, [w for w in windows if w.document % 2 == 0], (read, written), fit, batch)
    if not any(window.document % 2 for window in windows) or not len(fitting[2]):
        raise UsageError(f"{corpus!r}: needs two documents or more, to fit baselines on some and measure on others")
    every, width = {"dictionary": dictionary, **(beside or {})}, fitting[0].shape[1]
    if (bad := next((each for each in every.values() if each.d_in != width), None)) is not None:
        raise UsageError(f"{read} has rows of {width} dimensions; this dictionary reads {bad.d_in}")
    ways: dict[str, Rebuild] = {name: _by_dictionary(each) for name, each in every.items()}
    budget = max(1, round(float(ways["dictionary"](*fitting)[1].mean())))
    ways |= _baselines(fitting, budget, dictionary.n_latents, seed)
    tally = _Tally(model, dictionary, ways, len(every))
    for group in groups(window for window in windows if window.document % 2):
        for start in range(0, len(group), batch):
            tally.add(group[start : start + batch], read, written, spliced)
        if tally.tokens >= tokens:
            break
    return tally.result(written)


@torch.no_grad()
def spliced_logits(
    model: Model,
    dictionary: Dictionary,
    batch: Batch,
    *,
    site: str = "",
    target: str = "",
    change: Callable[[Codes], Codes] = lambda codes: codes,
    error: bool = False,
) -> Float[Tensor, "batch pos vocab"]:
    """Return the logits with the dictionary's reconstruction in place, at tokens of text.

    ``change`` may alter the codes; with ``error`` what the dictionary misses is added back, so that unchanged codes
    leave the model as it was and only the change counts.
    """
    read, written = _sites(model, dictionary, site, target)
    found = model.capture(batch, list(dict.fromkeys([read, written])))
    x, y = found.flat(read).flatten(1), found[written]
    codes = dictionary.encode(x)
    new = dictionary.decode(change(codes), x)
    if error:
        new = found.flat(written).flatten(1) + new - dictionary.decode(codes, x)
    return _run(model, batch, written, y, found.mask, new)


def token_class(text: str) -> str:
    r"""Return what kind of token a text is: word start, word inside, number, white space, or other.

    >>> [token_class(text) for text in (" the", "ing", " 19", "\n\n", ".", " (")]
    ['word start', 'word inside', 'number', 'white space', 'other', 'other']
    """
    bare = text.strip()
    if not bare:
        return "white space"
    if bare.isnumeric():
        return "number"
    if bare[0].isalpha():
        return "word start" if text[0].isspace() else "word inside"
    return "other"


def _sites(model: Model, dictionary: Dictionary, site: str, target: str) -> tuple[str, str]:
    about = dictionary.provenance
    read = site or about.site
    if not read:
        raise UsageError("the dictionary does not say where it reads; pass site=")
    names = site_names(model, [read, target or about.target or read])
    if len(names) > 2:
        raise UsageError(f"site={read!r}, target={target!r}: one place each")
    return names[0], names[-1]


def _in_turn(windows: Iterable[Context]) -> list[Context]:
    """Return one window of each document, then the second of each, and so on: few tokens still see many documents."""
    seen: Counter[int] = Counter()
    placed = []
    for window in windows:
        placed.append((seen[window.document], window.document, window))
        seen[window.document] += 1
    return [window for _, _, window in sorted(placed, key=itemgetter(0, 1))]


def _rows(
    model: Model, windows: Sequence[Context], sites: tuple[str, str], tokens: int, batch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is read, what is stood for, and token ids, of the first ``tokens`` rows."""
    parts: list[Rows] = []
    for group in groups(windows):
        for start in range(0, len(group), batch):
            if sum(map(len, parts)) < tokens:
                parts.append(activations(model, group[start : start + batch], list(dict.fromkeys(sites))))
    if not parts:
        return torch.zeros(0, 0), torch.zeros(0, 0), torch.zeros(0, dtype=torch.long)
    x, y = (torch.cat([part.values[site].float() for part in parts])[:tokens] for site in sites)
    return x, y, torch.cat([part.tokens for part in parts])[:tokens]


def _by_dictionary(dictionary: Dictionary) -> Rebuild:
    def rebuild(x: Tensor, _y: Tensor, _ids: Tensor) -> tuple[Tensor, Tensor]:
        codes = dictionary.encode(x)
        return dictionary.decode(codes, x), codes.l0

    return rebuild


def _baselines(fitting: tuple[Tensor, Tensor, Tensor], budget: int, n_latents: int, seed: int) -> dict[str, Rebuild]:
    _, y, ids = fitting
    mean = y.mean(0)
    budget = min(budget, y.shape[1], n_latents)
    basis = torch.linalg.eigh((y - mean).T @ (y - mean)).eigenvectors[:, -budget:]
    atoms = torch.randn(n_latents, y.shape[1], generator=torch.Generator().manual_seed(seed))
    atoms = atoms / atoms.norm(dim=-1, keepdim=True)

    def random(y: Tensor) -> Tensor:
        products = (y - mean) @ atoms.T
        top = products.abs().topk(budget, dim=-1).indices
        return nn.functional.embedding_bag(top, atoms, per_sample_weights=products.gather(1, top), mode="sum")

    drawn = random(y)
    constant = float(((y - mean) * drawn).sum() / drawn.square().sum().clamp(min=1e-12))
    known, index = ids.unique(return_inverse=True)
    means = torch.zeros(len(known), y.shape[1]).index_add_(0, index, y) / torch.bincount(index)[:, None]

    def token_mean(ids: Tensor) -> Tensor:
        at = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        return torch.where((known[at] == ids)[:, None], means[at], mean)

    def filled(y: Tensor, n: int) -> Tensor:
        return torch.full((len(y),), float(n))

    return {
        "PCA": lambda x, y, ids: (mean + (y - mean) @ basis @ basis.T, filled(y, budget)),
        "random atoms": lambda x, y, ids: (mean + constant * random(y), filled(y, budget)),
        "token mean": lambda x, y, ids: (token_mean(ids), filled(y, 1)),
    }


class _Tally:
    """Sums by document, of every way to rebuild."""

    def __init__(self, model: Model, dictionary: Dictionary, ways: dict[str, Rebuild], dictionaries: int) -> None:
        self.model, self.dictionary, self.ways, self.dictionaries = model, dictionary, ways, dictionaries
        self.tokens = 0
        self._rows: list[dict[str, Any]] = []
        """One a batch: documents, rows' errors, L0, squares and classes."""
        self._ce: list[tuple[np.ndarray, np.ndarray]] = []
        """Documents [token] and losses [token, clean | zero | way ...]."""
        self._fired: dict[str, Tensor] = {}
        self._kinds: dict[int, str] = {}

    def add(self, windows: Sequence[Context], read: str, written: str, spliced: bool) -> None:
        batch = self.model.batch([window.ids for window in windows])
        first = _first_block(self.model, written)
        start = [] if first is None else [f"resid_pre.{first}"]
        found = self.model.capture(batch, list(dict.fromkeys([read, written, *start])))
        x, y = (found.flat(site).flatten(1).float() for site in (read, written))
        ids = batch.ids[found.mask]
        context = found.mask.nonzero()[:, 0].tolist()
        documents = np.array([windows[i].document for i in context])
        rebuilt = {name: way(x, y, ids) for name, way in self.ways.items()}
        kinds = np.array([self._kind(token) for token in ids.tolist()])
        self._rows.append(
            {
                "documents": documents,
                "kinds": kinds,
                "y": y.double().numpy(),
                "errors": np.stack([(out - y).square().sum(-1).double().numpy() for out, _ in rebuilt.values()], 1),
                "l0": np.stack([l0.double().numpy() for _, l0 in rebuilt.values()], 1),
            }
        )
        self._count(x, kinds)
        self.tokens += len(y)
        if spliced:
            # The blocks below are the same for every reconstruction.
            with nullcontext() if first is None else self.model.started(first, found[start[0]]):
                self._losses(windows, batch, written, found[written], found.mask, [out for out, _ in rebuilt.values()])

    def result(self, site: str) -> Evaluation:
        documents, kinds, y, errors, l0 = (
            np.concatenate([row[name] for row in self._rows]) for name in ("documents", "kinds", "y", "errors", "l0")
        )
        spread = np.square(y - y.mean(0)).sum(-1)
        scores = tuple(
            Score(
                name,
                _ratio(errors[:, i], spread, documents),
                _ratio(l0[:, i], np.ones(len(l0)), documents),
                self._ce_score(i),
            )
            for i, name in enumerate(self.ways)
        )
        fired = torch.stack(list(self._fired.values())).sum(0)
        losses = np.concatenate([each for _, each in self._ce]).mean(0) if self._ce else None
        return Evaluation(
            site=site,
            score=scores[0],
            beside=scores[1 : self.dictionaries],
            baselines=scores[self.dictionaries :],
            dead=wilson(int((fired == 0).sum()), self.dictionary.n_latents),
            classes=tuple(
                self._density(kind, kinds == kind, documents, errors, l0, spread) for kind in sorted(set(kinds))
            ),
            tokens=self.tokens,
            documents=len(set(documents)),
            ce_clean=None if losses is None else float(losses[0]),
            ce_zero=None if losses is None else float(losses[1]),
        )

    def _kind(self, token: int) -> str:
        if token not in self._kinds:
            self._kinds[token] = token_class(self.model.decode([token]))
        return self._kinds[token]

    def _count(self, x: Tensor, kinds: np.ndarray) -> None:
        codes = self.dictionary.encode(x)
        for kind in set(kinds):
            inside = torch.from_numpy(kinds == kind)
            active = codes.indices[inside][codes.values[inside] != 0]
            more = torch.bincount(active, minlength=self.dictionary.n_latents)
            self._fired[kind] = self._fired[kind] + more if kind in self._fired else more

    def _losses(
        self, windows: Sequence[Context], batch: Batch, site: str, y: Tensor, mask: Tensor, outs: Sequence[Tensor]
    ) -> None:
        """Note the loss at every token of text that follows one, for the model as it is, zeros and every way."""
        values = [None, torch.zeros_like(outs[0]), *outs]
        counted = mask[:, 1:] & mask[:, :-1]
        documents = np.array([windows[i].document for i in counted.nonzero()[:, 0].tolist()])
        columns = []
        for value in values:
            logits = self.model.logits(batch) if value is None else _run(self.model, batch, site, y, mask, value)
            rows = [
                nn.functional.cross_entropy(row[:-1].float(), ids[1:], reduction="none")
                for row, ids in zip(logits, batch.ids, strict=True)
            ]
            columns.append(torch.stack(rows)[counted].double().numpy())
        if len(documents):
            self._ce.append((documents, np.stack(columns, 1)))

    def _ce_score(self, way: int) -> Interval | None:
        if not self._ce:
            return None
        documents, losses = (np.concatenate([each[i] for each in self._ce]) for i in (0, 1))
        gained, whole = losses[:, 1] - losses[:, 2 + way], losses[:, 1] - losses[:, 0]
        if whole.mean() <= 0:
            return Interval(np.nan, np.nan, np.nan, len(set(documents)), 0.95)
        return _ratio(gained, whole, documents)

    def _density(
        self,
        kind: str,
        inside: np.ndarray,
        documents: np.ndarray,
        errors: np.ndarray,
        l0: np.ndarray,
        spread: np.ndarray,
    ) -> Density:
        n = int(inside.sum())
        share = self._fired[kind].double().numpy() / n
        counts = np.histogram(np.log10(share[share > 0]).clip(BINS[0], 0), bins=BINS)[0]
        return Density(
            kind,
            n,
            _ratio(l0[inside, 0], np.ones(n), documents[inside]),
            float(errors[inside, 0].sum() / spread[inside].sum()),
            (int((share == 0).sum()), *map(int, counts)),
        )


def _first_block(model: Model, written: str) -> int | None:
    """Return the first block that a change at ``written`` reaches; None for a site outside the blocks."""
    (site,) = parse(written, model.layout)
    return None if site.layer is None else max(0, site.layer - (site.kind == "resid_pre"))


def _run(model: Model, batch: Batch, site: str, y: Tensor, mask: Tensor, rows: Float[Tensor, "row d"]) -> Tensor:
    """Return the logits with ``rows`` at the mask's tokens and the site as it was elsewhere."""
    new = y.clone()
    new[mask] = rows.reshape(new[mask].shape).to(y.dtype)
    # An edit that changes nothing is an error elsewhere; here it is a perfect reconstruction.
    with nullcontext() if torch.equal(new, y) else model.edited(Replace(site, new)):
        return model.logits(batch)


def _ratio(above: np.ndarray, below: np.ndarray, documents: np.ndarray) -> Interval:
    """Return sum over sum, with the t interval of a linearised ratio whose units are whole documents."""
    _, member = np.unique(documents, return_inverse=True)
    a, b = (np.bincount(member, weights=each) for each in (above, below))
    value, n = float(a.sum() / b.sum()), len(a)
    if n == 1:
        return Interval(value, np.nan, np.nan, 1, 0.95)
    error = np.sqrt(n / (n - 1) * np.square(a - value * b).sum()) / b.sum()
    half = float(t.ppf(0.975, n - 1) * error)
    return Interval(value, value - half, value + half, n, 0.95)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
