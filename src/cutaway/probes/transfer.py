"""Train on one set, test on every other: a table of cells, each with its interval and the shortcuts beside it.

Families: ``logistic`` and ``mean difference`` on activations, ``1 latent`` and ``k latents`` on a dictionary's codes,
``worst domain`` (the latent whose worst AUROC over the other sets is best; needs three sets), ``random`` direction.
All return logits, so that accuracy at 0 is accuracy at the threshold learnt at home.

1. Off the diagonal a probe is fitted on all rows of one set and scores another that shares no group with it (refused
   otherwise). On the diagonal groups are dealt into folds and each is scored by a probe of the others; a latent is
   chosen anew in each fold.
2. The interval of an AUROC has both its sources: test rows (DeLong, clustered by group) and training rows (refits on
   resampled groups); their variances add.
3. Cells with fewer than `SMALLEST` rows or one class are marked, not computed.

Source: card sae-answerability (2502.19964), Metrics and Beyond.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats as scipy_stats
from torch import Tensor

from cutaway.errors import UsageError, nearest
from cutaway.features import Codes
from cutaway.probes.linear import fit_probe
from cutaway.probes.scoring import auroc, calibration_error
from cutaway.probes.selection import check_labels, columns, fit_k_sparse, grouped_folds, rows_of, screen, strongest
from cutaway.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

Family = Literal["logistic", "mean difference", "1 latent", "k latents", "worst domain", "random"]
SMALLEST = 30
FOLDS = 5
Scorer = Callable[["Labelled"], Float[np.ndarray, " row"]]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Rows of one set at one site."""

    name: str
    x: Float[Tensor, "row d"] = field(repr=False)
    y: Bool[np.ndarray, " label"] = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)
    """Rows of one group (a passage, a pair) are never on both sides."""
    codes: Codes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or len(self.x) != len(self.groups):
            raise UsageError(f"{self.name}: {len(self.x)} rows, {len(self.y)} labels, {len(self.groups)} groups")
        if self.y.dtype != np.bool_:
            raise UsageError(f"{self.name}: labels of type {self.y.dtype}; true or false for each row")
        if not bool(torch.isfinite(self.x).all()):
            raise UsageError(f"{self.name}: activations contain nan or infinity")
        if self.codes is not None and len(self.codes) != len(self.x):
            raise UsageError(f"{self.name}: codes of {len(self.codes)} rows, activations of {len(self.x)}")

    def part(self, mask: Bool[np.ndarray, " row"]) -> "Labelled":
        """Return some of the rows."""
        keep = np.flatnonzero(mask)
        codes = None if self.codes is None else rows_of(self.codes, mask)
        groups = tuple(self.groups[i] for i in keep)
        return Labelled(self.name, self.x[torch.from_numpy(keep)], self.y[keep], groups, codes)


@dataclass(frozen=True)
class Cell:
    """One probe on one set."""

    train: str
    test: str
    family: str
    site: str
    n: int
    area: Interval | None = None
    """None where the cell is marked."""
    accuracy: float | None = None
    """At the threshold learnt at home."""
    retuned: float | None = None
    """At the best threshold of the test set itself: what is lost to a shifted threshold."""
    error: float | None = None
    """Expected calibration error."""
    latents: tuple[int, ...] = ()
    mark: str = ""
    """Why there is no number."""

    @property
    def home(self) -> bool:
        return self.train == self.test


@dataclass(frozen=True)
class Transfer:
    """The table."""

    cells: tuple[Cell, ...]
    complete: bool = True

    def __repr__(self) -> str:
        done = [cell for cell in self.cells if cell.area is not None]
        home, away = ([c.area.value for c in done if c.area and c.home == side] for side in (True, False))
        means = [f"{np.mean(part):.2f}" if part else "nothing" for part in (home, away)]
        return f"Transfer(mean AUROC {means[0]} at home, {means[1]} away, {len(self.cells)} cells)"

    def of(self, train: str, test: str, family: str, site: str = "") -> Cell:
        """Return one cell; UsageError where there is none."""
        for cell in self.cells:
            if (cell.train, cell.test, cell.family) == (train, test, family) and site in ("", cell.site):
                return cell
        raise UsageError(f"no cell {train!r} -> {test!r} by {family!r}; {len(self.cells)} others")

    def gap(self, train: str, test: str, family: str, site: str = "") -> float:
        """Return AUROC at home less AUROC on ``test``; nan where a cell is marked."""
        home, away = (self.of(train, other, family, site).area for other in (train, test))
        return float("nan") if home is None or away is None else home.value - away.value

    def to_frame(self) -> "pd.DataFrame":
        """One row a cell."""
        import pandas as pd

        rows = []
        for cell in self.cells:
            found = cell.area
            ends = {} if found is None else {"auroc": found.value, "low": found.low, "high": found.high}
            rows.append({**{k: v for k, v in vars(cell).items() if k != "area"}, **ends})
        return pd.DataFrame(rows)


def transfer(
    sets: Sequence[Labelled],
    families: Sequence[Family | str] = ("logistic", "mean difference", "1 latent", "k latents"),
    *,
    site: str = "",
    k: int = 5,
    resamples: int = 20,
    strength: float = 0.01,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Transfer:
    """Fill the table; on Ctrl-C return the cells that are done, ``complete=False``.

    UsageError for sets that share a group, have other widths, or families that need codes where there are none.
    """
    _check(sets, families)
    cells: list[Cell] = []
    total = len(sets) * len(families)
    complete = True
    try:
        for number, family in enumerate(families):
            for place, home in enumerate(sets):
                report(number * len(sets) + place, total)
                fit = _fitter(str(family), sets, k, strength, seed)
                cells += _row(home, sets, str(family), site, fit, resamples, seed)
    except KeyboardInterrupt:
        complete = False
    return Transfer(tuple(cells), complete)


def agreement(
    home: Labelled, away: Labelled, least: float = 0.05, top: int = 200
) -> tuple[Interval, Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
    """Kendall's tau between latents' AUROC in two sets, with both lists; latents active on a share ``least`` of each.

    Of these the ``top`` farthest from 0.5 at home count. The interval uses tau's variance without ties.
    """
    if home.codes is None or away.codes is None:
        raise UsageError("agreement needs codes of both sets")
    ours, other = screen(home.codes, home.y), screen(away.codes, away.y)
    active = np.min([_activity(each.codes) for each in (home, away) if each.codes is not None], axis=0) >= least
    kept = [i for i in strongest(ours, len(ours)) if active[i]][:top]
    if len(kept) < 10:
        return Interval(math.nan, math.nan, math.nan, len(kept), 0.95), ours, other
    found, n = float(scipy_stats.kendalltau(ours[kept], other[kept]).statistic), len(kept)
    half = 1.96 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    return Interval(found, max(-1.0, found - half), min(1.0, found + half), n, 0.95), ours, other


def shortcuts_of(
    home: Labelled, others: Sequence[Labelled], latents: Sequence[int], strong: float = 0.7, level: float = 0.998
) -> dict[int, str]:
    """Say of each latent that is strong at home whether it transfers: its interval above 0.5, the same way round.

    ``level`` is strict because several latents are tried on several sets.
    """
    assert home.codes is not None
    verdicts = {}
    for latent in latents:
        at_home = auroc(home.y, columns(home.codes, [latent])[:, 0], clusters=np.asarray(home.groups))
        side = 1.0 if at_home.value >= 0.5 else -1.0
        if max(at_home.value, 1 - at_home.value) < strong:
            continue
        away = [
            auroc(each.y, side * columns(each.codes, [latent])[:, 0], level, np.asarray(each.groups))
            for each in others
            if each.codes is not None
        ]
        if all(each.low > 0.5 for each in away):
            verdicts[latent] = "transfers"
        elif any(each.low > 0.5 for each in away):
            verdicts[latent] = "transfers in part"
        else:
            verdicts[latent] = "shortcut"
    return verdicts


def _row(
    home: Labelled, sets: Sequence[Labelled], family: str, site: str, fit: "_Fit", resamples: int, seed: int
) -> list[Cell]:
    if mark := _mark(home):
        return [Cell(home.name, test.name, family, site, len(test.y), mark=f"training set: {mark}") for test in sets]
    scorer, latents = fit(home)
    rng = np.random.default_rng((seed, 3))
    again = [fit(_resampled(home, rng))[0] for _ in range(resamples)]
    cells = []
    for test in sets:
        cell = Cell(home.name, test.name, family, site, len(test.y), latents=latents)
        if mark := _mark(test):
            cells.append(replace(cell, mark=mark))
            continue
        if test is home:
            scores = np.zeros(len(test.y))
            for held in grouped_folds(test.groups, FOLDS, seed, test.y):
                scores[held] = fit(test.part(~held))[0](test.part(held))
            cells.append(_measured(cell, test, scores, []))
        else:
            cells.append(_measured(cell, test, scorer(test), [each(test) for each in again]))
    return cells


def _measured(cell: Cell, test: Labelled, scores: np.ndarray, again: Sequence[np.ndarray]) -> Cell:
    found = auroc(test.y, scores, clusters=np.asarray(test.groups))
    if len(again) > 1:
        refits = [auroc(test.y, each).value for each in again]
        half = math.hypot((found.high - found.low) / 2, 1.96 * float(np.std(refits, ddof=1)))
        found = replace(found, low=max(0.0, found.value - half), high=min(1.0, found.value + half))
    order = np.argsort(scores)
    hits = np.concatenate([[test.y.sum()], test.y.sum() + np.cumsum(np.where(test.y[order], -1, 1))])
    return replace(
        cell,
        area=found,
        accuracy=float(np.mean((scores > 0) == test.y)),
        retuned=float(hits.max() / len(scores)),
        error=calibration_error(test.y, scores),
    )


_Fit = Callable[[Labelled], tuple[Scorer, tuple[int, ...]]]


def _fitter(family: str, sets: Sequence[Labelled], k: int, strength: float, seed: int) -> _Fit:
    """Return what fits one family; it gives a scorer and the latents used."""

    def dense(home: Labelled) -> tuple[Scorer, tuple[int, ...]]:
        kind: Literal["logistic", "mean difference"] = "logistic" if family == "logistic" else "mean difference"
        probe = fit_probe(home.x, torch.from_numpy(home.y), "x", "last", family=kind, strength=strength)
        return lambda test: probe.scores(test.x).double().numpy(), ()

    def drawn(home: Labelled) -> tuple[Scorer, tuple[int, ...]]:
        weight = torch.from_numpy(np.random.default_rng((seed, 4)).standard_normal(home.x.shape[1])).float()
        return lambda test: ((test.x - home.x.mean(0)) @ weight).double().numpy(), ()

    def sparse(home: Labelled) -> tuple[Scorer, tuple[int, ...]]:
        assert home.codes is not None
        probe = fit_k_sparse(home.codes, home.y, 1 if family == "1 latent" else k)
        return lambda test: _codes(test, probe.scores), probe.latents

    def worst(home: Labelled) -> tuple[Scorer, tuple[int, ...]]:
        # The set that is tested has no say, so a latent is chosen for each test set apart.
        def scores(test: Labelled) -> np.ndarray:
            seen = [home, *(each for each in sets if each.name not in (home.name, test.name))]
            areas = np.stack([screen(each.codes, each.y) for each in seen if each.codes is not None])
            gain = np.maximum(areas.min(0) - 0.5, 0.5 - areas.max(0))
            best = int(gain.argmax())
            assert home.codes is not None
            return _codes(test, fit_k_sparse(home.codes, home.y, latents=[best]).scores)

        return scores, ()

    kinds: Mapping[str, _Fit] = {"logistic": dense, "mean difference": dense, "random": drawn, "worst domain": worst}
    return kinds.get(family, sparse)


def _codes(test: Labelled, scores: Callable[[Codes], np.ndarray]) -> np.ndarray:
    assert test.codes is not None
    return scores(test.codes)


def _resampled(home: Labelled, rng: np.random.Generator) -> Labelled:
    """Whole groups, drawn again until both classes are there."""
    names, member = np.unique(np.asarray(home.groups), return_inverse=True)
    rows_by_group = [np.flatnonzero(member == i) for i in range(len(names))]
    while True:
        rows = np.concatenate([rows_by_group[i] for i in rng.integers(0, len(names), len(names))])
        if len(set(home.y[rows].tolist())) == 2:
            break
    at = torch.from_numpy(rows)
    codes = home.codes
    if codes is not None:
        codes = Codes(codes.indices[at], codes.values[at], codes.n_latents)
    return Labelled(home.name, home.x[at], home.y[rows], tuple(home.groups[i] for i in rows), codes)


def _mark(each: Labelled) -> str:
    if len(each.y) < SMALLEST:
        return f"{len(each.y)} rows; {SMALLEST} are needed"
    if each.y.all() or not each.y.any():
        return "one class only"
    return ""


def _activity(codes: Codes) -> np.ndarray:
    active = codes.indices[codes.values != 0]
    return np.bincount(active.cpu().numpy(), minlength=codes.n_latents) / max(1, len(codes))


def _check(sets: Sequence[Labelled], families: Sequence[str]) -> None:
    names = [each.name for each in sets]
    if not sets or len(set(names)) < len(names):
        raise UsageError(f"sets {names}: at least one, each with a name of its own")
    if bad := next((each for each in families if each not in get_args(Family)), None):
        raise UsageError(f"family {bad!r}{nearest(bad, get_args(Family))}")
    if len({each.x.shape[1] for each in sets}) > 1:
        raise UsageError(f"sets of {sorted({each.x.shape[1] for each in sets})} features; give one site of one model")
    needs = [each for each in families if "latent" in each or each == "worst domain"]
    widths = {None if each.codes is None else each.codes.n_latents for each in sets}
    if needs and (None in widths or len(widths) > 1):
        raise UsageError(f"family {needs[0]!r} needs codes of one dictionary for every set")
    if "worst domain" in families and len(sets) < 3:
        raise UsageError(f"family 'worst domain' chooses among other sets; {len(sets)} sets are too few, give three")
    for i, one in enumerate(sets):
        for other in sets[i + 1 :]:
            if shared := set(one.groups) & set(other.groups):
                raise UsageError(
                    f"{one.name!r} and {other.name!r} share {len(shared)} groups, {sorted(shared)[0]!r} for one; "
                    "rows of one passage or question must be on one side"
                )
    for each in sets:
        if not _mark(each):
            check_labels(each.y, len(each.x))
