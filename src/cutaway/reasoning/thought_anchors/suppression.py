"""Attention suppression: what each sentence does to later ones, by hiding its keys from every query, layer and head.

Section 3 of the card (Bogdan et al. 2025, arXiv 2506.19143), with the published faults repaired:
 1. One forward of prompt and trace; its keys, values and logits serve every later pass (memory: those of one forward).
 2. For each source sentence a masked run. Positions before the source cannot change. The source's own positions feed
    nothing, since nobody may look at them. So a pass computes from the source's last position on, with the prefix
    from step 1; ``rows`` sources share a pass, and positions keep their numbers.
 3. At each later token: KL(base || masked) at ``temperature`` over the union of both nuclei (``nucleus`` mass, at most
    ``most`` tokens a side) and one bucket for the rest. Logits at t - 1 are compared for token t.
 4. Cell (target, source) = mean over the target's tokens of log(KL + 1e-9). `centred` subtracts each target's mean over
    its earlier sources. Cells with target <= source do not exist.
 5. Controls: random spans of the trace with each sentence's length, suppressed in the same way.

By name, for comparison with published numbers: ``divergence="published"`` drops the rest and gives a token that is
missing on one side the logit -1e9, so some cells are near 20; ``shift="published"`` compares the logits at t, which
predict t + 1.

Traps: a source that leaves its last position nothing to attend to (no prompt and the first sentence, or a sliding
window inside a long sentence) keeps sight of itself there and is listed in `blind`. Near-zero effects lie in the
rounding of the model's own arithmetic; on the log scale they still vary, so read a cell against the controls.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.rollouts import Report
from cutaway.reasoning.thought_anchors.masked import MaskedRuns, Span
from cutaway.reasoning.thought_anchors.nucleus import Divergence, Nucleus
from cutaway.reasoning.view import Links, Track
from cutaway.sampling import Trace

if TYPE_CHECKING:
    import pandas as pd

Shift = Literal["next token", "published"]


@dataclass(frozen=True, repr=False)
class SuppressionMatrix:
    """Effect of hiding each sentence on each later one."""

    spans: tuple[Span, ...]
    """Token span of each sentence, counted from the first token of the trace."""
    log_kl: Float[np.ndarray, "target source"]
    """Mean over the target's tokens of log(KL + 1e-9), nats; NaN where the source is not earlier."""
    control_spans: tuple[Span, ...]
    control_log_kl: Float[np.ndarray, "target control"]
    """The same for random spans of the sentences' lengths; NaN where the span does not end before the target."""
    blind: tuple[int, ...]
    """Sources whose last position was left with nothing but itself to attend to."""
    temperature: float
    divergence: Divergence
    shift: Shift
    complete: bool = True
    """False when Ctrl-C ended the run; sources not reached are NaN."""

    def __repr__(self) -> str:
        target, source = np.unravel_index(np.argmax(np.nan_to_num(self.centred, nan=-np.inf)), self.log_kl.shape)
        strongest = f"{source} -> {target} {self.centred[target, source]:+.2f} log KL over its row"
        return (
            f"SuppressionMatrix({len(self.spans)} sentences, {len(self.control_spans)} controls, strongest {strongest})"
        )

    @property
    def centred(self) -> Float[np.ndarray, "target source"]:
        """Cells minus their target's mean over earlier sources."""
        return self.log_kl - _row_mean(self.log_kl)

    @cached_property
    def p_values(self) -> Float[np.ndarray, "target source"]:
        """Share of control cells at least as large, matched for length and distance; NaN without a cell or control.

        Controls that share a token with the source are no controls of it. Matching is a regression of the control
        cells, centred like the others, on log length and log distance.
        """
        out = np.full(self.log_kl.shape, np.nan)
        control = self.control_log_kl - _row_mean(self.log_kl)
        here, there = np.isfinite(self.centred), np.isfinite(control)
        traits, other = self._traits(self.spans), self._traits(self.control_spans)
        for source, (a, b) in enumerate(self.spans):
            apart = np.array([d <= a or c >= b for c, d in self.control_spans], dtype=bool)
            pool, cells = there & apart[None], here[:, source]
            if pool.sum() < 2 * traits.shape[-1] or not cells.any():
                continue
            weights = np.linalg.lstsq(other[pool], control[pool], rcond=None)[0]
            left = np.sort(control[pool] - other[pool] @ weights)
            ours = self.centred[cells, source] - traits[cells, source] @ weights
            out[cells, source] = (1 + len(left) - np.searchsorted(left, ours - 1e-12)) / (1 + len(left))
        return out

    def effects_of(self, source: int) -> tuple[tuple[int, float], ...]:
        """What a sentence does: (later sentence, centred effect), strongest first."""
        return _ranked(self.centred[:, source])

    def depends_on(self, target: int) -> tuple[tuple[int, float], ...]:
        """What a sentence rests on: (earlier sentence, centred effect), strongest first."""
        return _ranked(self.centred[target])

    def links(self, top: int = 3, alpha: float = 0.01, study: str = "") -> Links:
        """Each target's ``top`` sources whose effect is positive and larger than all but ``alpha`` of the controls.

        UsageError when no controls were run.
        """
        if not self.control_spans:
            raise UsageError("controls=0: links are judged against controls; run with controls=1 or more")
        p = self.p_values
        found = [
            (source, target, effect)
            for target in range(len(self.spans))
            for source, effect in self.depends_on(target)[:top]
            if effect > 0 and p[target, source] <= alpha
        ]
        return Links(
            name="attention suppression",
            what="Hiding the earlier sentence changes the later one's predictions more than hiding random text"
            f" of that length and distance (all but {alpha:.0%} of it).",
            links=tuple(found),
            unit="log KL above the row's mean",
            study=study,
        )

    def tracks(self, study: str = "") -> tuple[Track, Track]:
        """Both directions: what each sentence does to later ones, and how much it rests on earlier ones."""
        last, n = "no later sentence", len(self.spans)
        out = [_mean(self.centred[:, i]) for i in range(n)]
        rests = [_mean(self.log_kl[i]) for i in range(n)]
        return (
            Track(
                name="suppression: effect on later sentences",
                what="Mean change of later sentences when this one is hidden, above their mean over sources (log KL).",
                value=tuple(out),
                unit="nats of log KL",
                undefined=tuple("" if x is not None else last if i == n - 1 else "not run" for i, x in enumerate(out)),
                study=study,
            ),
            Track(
                name="suppression: dependence on earlier sentences",
                what="Mean change of this sentence over hiding each earlier one (log KL).",
                value=tuple(rests),
                unit="nats of log KL",
                undefined=tuple("" if x is not None else "no earlier sentence" for x in rests),
                study=study,
            ),
        )

    def to_frame(self) -> "pd.DataFrame":
        """One row a cell: source, target, log_kl, centred effect, p against the controls."""
        import pandas as pd

        target, source = np.nonzero(np.isfinite(self.log_kl))
        columns = {"log_kl": self.log_kl, "centred": self.centred, "p": self.p_values}
        return pd.DataFrame({"source": source, "target": target, **{k: v[target, source] for k, v in columns.items()}})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        fields = asdict(self)
        for name in ("log_kl", "control_log_kl"):
            fields[name] = [[x if math.isfinite(x) else None for x in row] for row in fields[name].tolist()]
        return fields

    def save(self, path: str | Path) -> None:
        """Write the matrix as JSON."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")

    def _traits(self, sources: Sequence[Span]) -> Float[np.ndarray, "target source trait"]:
        """What cells are matched on: 1, log length of the source, log distance in tokens to the target."""
        start = np.array([a for a, _ in self.spans])[:, None]
        ends = np.array([b for _, b in sources])[None]
        length = np.array([b - a for a, b in sources])[None]
        gap = np.log1p(np.maximum(start - ends, 0))
        return np.stack([np.ones_like(gap), np.broadcast_to(np.log(length), gap.shape), gap], -1)


def suppression_matrix(
    model: Model,
    trace: Trace,
    *,
    rows: int = 4,
    controls: int = 1,
    temperature: float = 0.6,
    nucleus: float = 0.9999,
    most: int = 100,
    divergence: Divergence = "union and rest",
    shift: Shift = "next token",
    seed: int = 0,
    report: Report = lambda done, planned, note: None,
) -> SuppressionMatrix:
    """Hide each sentence of ``trace`` in turn and measure every later one; see the module's text.

    ``rows`` sources run in one pass; ``controls`` random spans are drawn for each sentence. UsageError for fewer than
    two sentences, a trace longer than the context, or attention that takes no mask. Ctrl-C keeps what is done.
    """
    if trace.n_sentences < 2:
        raise UsageError(f"{trace.n_sentences} sentences: suppression needs an earlier and a later one")
    start, spans = len(trace.prompt), list(trace.spans)
    drawn = _control_spans(spans, controls, seed)
    sources = [(start + a, start + b) for a, b in [*spans[:-1], *drawn]]
    targets = [(start + a, start + b) for a, b in spans]
    how, lag = Nucleus(temperature, nucleus, most), 1 if shift == "next token" else 0
    run = MaskedRuns(model, (*trace.prompt, *trace.ids), targets, how, divergence, lag)
    cells = np.full((len(spans), len(sources)), np.nan)
    order = sorted(range(len(sources)), key=lambda i: sources[i][1])
    blind: set[int] = set()
    complete = True
    try:
        for at in range(0, len(order), rows):
            group = order[at : at + rows]
            found, lost = run.measure([sources[i] for i in group])
            cells[:, group] = found
            blind.update(i for i, is_lost in zip(group, lost, strict=True) if is_lost)
            report(min(at + rows, len(order)), len(order), "sources")
    except KeyboardInterrupt:
        complete = False
    log_kl = np.full((len(spans), len(spans)), np.nan)
    log_kl[:, :-1] = cells[:, : len(spans) - 1]
    return SuppressionMatrix(
        spans=tuple(spans),
        log_kl=log_kl,
        control_spans=tuple(drawn),
        control_log_kl=cells[:, len(spans) - 1 :],
        blind=tuple(sorted(i for i in blind if i < len(spans) - 1)),
        temperature=temperature,
        divergence=divergence,
        shift=shift,
        complete=complete,
    )


def _control_spans(spans: Sequence[Span], controls: int, seed: int) -> list[Span]:
    """For each sentence but the last, ``controls`` random spans of its length that end before the last sentence."""
    if controls < 0:
        raise UsageError(f"controls={controls}: 0 or more")
    rng, last = np.random.default_rng(seed), spans[-1][0]
    out = []
    for a, b in spans[:-1]:
        for start in rng.integers(spans[0][0], last - (b - a), controls, endpoint=True).tolist():
            out.append((start, start + b - a))
    return out


def _row_mean(cells: Float[np.ndarray, "target source"]) -> Float[np.ndarray, "target 1"]:
    known = np.isfinite(cells)
    count = known.sum(-1, keepdims=True)
    return np.where(count > 0, np.where(known, cells, 0).sum(-1, keepdims=True) / np.maximum(count, 1), np.nan)


def _ranked(values: Float[np.ndarray, " sentence"]) -> tuple[tuple[int, float], ...]:
    found = [(i, float(x)) for i, x in enumerate(values) if np.isfinite(x)]
    return tuple(sorted(found, key=lambda each: -each[1]))


def _mean(values: Float[np.ndarray, " sentence"]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
