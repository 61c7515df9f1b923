"""Which sentence makes a later one appear (thought-anchors card, section 1, black box).

influence(i -> j) = share of the rollouts after sentence i that contain a sentence saying what S_j says, minus that
share among the rollouts before sentence i.

 1. Every rollout from the boundaries 0 .. n - 1 is split into sentences; each distinct wording is embedded once.
 2. A rollout says S_j when one of its sentences has cosine >= 0.7 with S_j (without an embedder: is the same text).
 3. All pairs i < j at once: differences of shares with Newcombe intervals, and two-sided exact tests (twice Fisher's
    smaller tail) kept under Benjamini-Hochberg. A target that all or none of a pair's rollouts say is not tested.
 4. Control: the rollouts of every boundary and the next are dealt to the two at random and counted again. What
    survives then is false.

Traps. All pairs of one source share their rollouts, and neighbouring sources share a boundary; tests are dependent,
and the control says what that does. A rollout says S_j wherever in its text it does: a sentence that merely delays
the rest is not told from one that causes it. Rollouts cut at max_tokens say less.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom, norm

from cutaway.errors import UsageError
from cutaway.reasoning.embedding import Embed, cosine
from cutaway.reasoning.thought_anchors.boundaries import Draws
from cutaway.reasoning.view import Links
from cutaway.sampling import split_text
from cutaway.stats import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

SAYS = 0.7
"""Cosine at or above which a rollout's sentence says what a sentence of the trace says."""
CHUNK = 4096
Matrix = Float[np.ndarray, "sentence sentence"]


@dataclass(frozen=True)
class Influence:
    """What each sentence does to how likely each later one is; [source, target], nan where nothing was measured."""

    sentences: tuple[str, ...]
    strength: Matrix
    low: Matrix
    high: Matrix
    p: Matrix
    """nan also where all rollouts, or none, say the target: nothing to test."""
    kept: Bool[np.ndarray, "sentence sentence"]
    """Survives false-discovery control over all measured pairs."""
    n: Int[np.ndarray, " sentence"]
    """Rollouts from the boundary before each sentence."""
    control: int
    """Pairs that survive when rollouts are dealt to the boundaries at random; 0 is hoped for."""
    fdr: float
    level: float

    @property
    def tested(self) -> int:
        """Pairs that could be tested: some rollouts say the target and some do not."""
        return int(np.isfinite(self.p).sum())

    def __repr__(self) -> str:
        head = f"Influence({len(self.sentences)} sentences, {int(self.kept.sum())} of {self.tested} links kept"
        best = self._strongest(self.kept, 1)
        if not best:
            return f"{head}, {self.control} when shuffled)"
        i, j, value = best[0]
        strongest = f"{i + 1} -> {j + 1} {value:+.2f} [{self.low[i, j]:.2f}, {self.high[i, j]:.2f}]"
        return f"{head}, {self.control} when shuffled, strongest {strongest})"

    def links(self, study: str = "thought-anchors") -> Links:
        """The links that survive, strongest first."""
        what = (
            "How much more often rollouts say the target when the source is kept: difference of shares; "
            f"only pairs that survive a false-discovery rate of {self.fdr:g}."
        )
        return Links("black-box influence", what, self._strongest(self.kept, None), "share", study)

    def outgoing(self, source: int, k: int = 3) -> tuple[tuple[int, int, float], ...]:
        """The ``k`` strongest surviving links from a sentence."""
        return self._strongest(self.kept & (np.arange(len(self.kept)) == self._index(source))[:, None], k)

    def incoming(self, target: int, k: int = 3) -> tuple[tuple[int, int, float], ...]:
        """The ``k`` strongest surviving links to a sentence."""
        return self._strongest(self.kept & (np.arange(len(self.kept)) == self._index(target))[None, :], k)

    def to_frame(self) -> "pd.DataFrame":
        """One row a measured pair."""
        import pandas as pd

        source, target = np.nonzero(np.isfinite(self.strength))
        columns = {name: getattr(self, name)[source, target] for name in ("strength", "low", "high", "p", "kept")}
        return pd.DataFrame({"source": source, "target": target, **columns})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; undefined cells are None."""
        found: dict[str, Any] = {"sentences": list(self.sentences), "kept": self.kept.tolist(), "n": self.n.tolist()}
        for name in ("strength", "low", "high", "p"):
            matrix = getattr(self, name)
            found[name] = [[float(x) if np.isfinite(x) else None for x in row] for row in matrix]
        return found | {"control": self.control, "fdr": self.fdr, "level": self.level}

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")

    def _index(self, sentence: int) -> int:
        if not 0 <= sentence < len(self.sentences):
            raise UsageError(f"sentence {sentence}: the trace has 0 to {len(self.sentences) - 1}")
        return sentence

    def _strongest(self, chosen: np.ndarray, k: int | None) -> tuple[tuple[int, int, float], ...]:
        pairs = sorted(np.argwhere(chosen).tolist(), key=lambda pair: -abs(self.strength[pair[0], pair[1]]))
        return tuple((i, j, float(self.strength[i, j])) for i, j in pairs[:k])


def measure_influence(
    sentences: Sequence[str],
    draws: Sequence[Draws | None],
    embed: Embed | None = None,
    *,
    least: float = SAYS,
    fdr: float = 0.05,
    level: float = 0.95,
    seed: int = 0,
) -> Influence:
    """All sentence-to-sentence links from rollouts of the boundary before each sentence.

    A sentence whose boundary, or the next one, has no rollouts links to nothing. Raises UsageError when the lists
    do not match or there is no sentence.
    """
    if not sentences or len(draws) != len(sentences):
        raise UsageError(f"{len(draws)} boundaries of rollouts for {len(sentences)} sentences; give one a sentence")
    says = _who_says(sentences, draws, embed, least)
    counted = _count(says)
    p = _test(counted)
    strength, low, high = _differences(counted, level)
    dealt = _test(_count(says, np.random.default_rng(seed)))
    return Influence(
        sentences=tuple(sentences),
        strength=strength,
        low=low,
        high=high,
        p=p,
        kept=_survivors(p, fdr),
        n=counted.n_before,
        control=int(_survivors(dealt, fdr).sum()),
        fdr=fdr,
        level=level,
    )


def _who_says(
    sentences: Sequence[str], draws: Sequence[Draws | None], embed: Embed | None, least: float
) -> list[Bool[np.ndarray, "_ sentence"]]:
    """For each boundary, which rollout says which sentence of the trace."""
    place: dict[str, int] = {}
    written = [
        [
            [place.setdefault(text[a:b].strip(), len(place)) for a, b in split_text(text)]
            for text in (each.texts if each is not None else ())
        ]
        for each in draws
    ]
    same = _match(list(place), [sentence.strip() for sentence in sentences], embed, least)
    nothing = np.zeros(len(sentences), dtype=bool)
    return [
        np.array([same[ids].any(0) if ids else nothing for ids in rollouts], dtype=bool).reshape(-1, len(sentences))
        for rollouts in written
    ]


def _match(
    wordings: Sequence[str], targets: Sequence[str], embed: Embed | None, least: float
) -> Bool[np.ndarray, "wording sentence"]:
    if not wordings:
        return np.zeros((0, len(targets)), dtype=bool)
    if embed is None:
        return np.array([[wording == target for target in targets] for wording in wordings], dtype=bool)
    own = embed(targets)
    parts = [wordings[at : at + CHUNK] for at in range(0, len(wordings), CHUNK)]
    return np.concatenate([cosine(embed(part), own) >= least for part in parts])


@dataclass(frozen=True)
class _Counted:
    """Rollouts that say each target, [source, target], and rollouts at all, before and after each source."""

    before: Int[np.ndarray, "sentence sentence"]
    after: Int[np.ndarray, "sentence sentence"]
    n_before: Int[np.ndarray, " sentence"]
    n_after: Int[np.ndarray, " sentence"]

    @property
    def measured(self) -> Bool[np.ndarray, "sentence sentence"]:
        """Earlier sources with rollouts on both sides."""
        both = (self.n_before > 0) & (self.n_after > 0)
        return np.triu(np.ones(self.before.shape, dtype=bool), 1) & both[:, None]


def _count(says: Sequence[Bool[np.ndarray, "_ sentence"]], deal: np.random.Generator | None = None) -> _Counted:
    """Counts around every source; ``deal`` shuffles whole rollouts between its two boundaries first."""
    nobody = says[0][:0]
    before, after = list(says), [*says[1:], nobody]
    if deal is not None:
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            both = deal.permutation(np.concatenate([one, other]))
            before[i], after[i] = both[: len(one)], both[len(one) :]
    return _Counted(
        np.array([each.sum(0) for each in before]),
        np.array([each.sum(0) for each in after]),
        np.array([len(each) for each in before]),
        np.array([len(each) for each in after]),
    )


def _test(counted: _Counted) -> Matrix:
    """Two-sided exact p of each pair; nan where there is nothing to test."""
    n0, n1 = (np.broadcast_to(n[:, None], counted.before.shape) for n in (counted.n_before, counted.n_after))
    said = counted.before + counted.after
    chosen = counted.measured & (said > 0) & (said < n0 + n1)
    tables, where = np.unique(
        np.stack([x[chosen] for x in (counted.after, said, n1, n0 + n1)], axis=1), axis=0, return_inverse=True
    )
    k, successes, drawn, total = tables.T
    lower, upper = hypergeom.cdf(k, total, successes, drawn), hypergeom.sf(k - 1, total, successes, drawn)
    p = np.full(said.shape, np.nan)
    p[chosen] = np.minimum(1.0, 2 * np.minimum(lower, upper))[where.reshape(-1)]
    return p


def _survivors(p: Matrix, fdr: float) -> Bool[np.ndarray, "sentence sentence"]:
    kept = np.zeros(p.shape, dtype=bool)
    tested = np.isfinite(p)
    kept[tested] = benjamini_hochberg(p[tested], fdr).rejected
    return kept


def _differences(counted: _Counted, level: float) -> tuple[Matrix, Matrix, Matrix]:
    """After minus before with Newcombe's ends; nan for pairs that were not measured."""
    share, low, high = zip(
        *(_wilson(k, n, level) for k, n in ((counted.after, counted.n_after), (counted.before, counted.n_before))),
        strict=True,
    )
    value = share[0] - share[1]
    found = (
        value,
        value - np.hypot(share[0] - low[0], high[1] - share[1]),
        value + np.hypot(high[0] - share[0], share[1] - low[1]),
    )
    blank = ~counted.measured
    for each in found:
        each[blank] = np.nan
    return found


def _wilson(k: np.ndarray, n: np.ndarray, level: float) -> tuple[Matrix, Matrix, Matrix]:
    """Wilson's interval of every cell of a row with its row's n (see `cutaway.stats.wilson`)."""
    z, size = norm.ppf((1 + level) / 2), np.maximum(n, 1)[:, None]
    share = k / size
    centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return share, np.where(k == 0, 0.0, centre - half), np.where(k == size, 1.0, centre + half)
