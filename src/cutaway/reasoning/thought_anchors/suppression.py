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
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.rollouts import Report
from cutaway.reasoning.view import Links, Track
from cutaway.sampling import Trace
from cutaway.sampling.kv import Trunk, grow_trunk

if TYPE_CHECKING:
    import pandas as pd

Span = tuple[int, int]
Divergence = Literal["union and rest", "published"]
Shift = Literal["next token", "published"]
FLOOR = 1e-9
MISSING = -1e9
CHUNK = 128


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
    run = _Run(model, (*trace.prompt, *trace.ids), targets, temperature, nucleus, most, divergence, shift)
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


def nucleus_kl(
    base: Float[Tensor, "pos vocab"],
    other: Float[Tensor, "pos vocab"],
    *,
    temperature: float = 0.6,
    nucleus: float = 0.9999,
    most: int = 100,
    divergence: Divergence = "union and rest",
) -> Float[Tensor, " pos"]:
    """KL(base || other) of two rows of logits over the union of both nuclei, nats, fp64.

    ``union and rest``: true probabilities, and one bucket for every token outside the union. ``published``: no bucket,
    a token outside a side's own nucleus has logit -1e9 there, both sides are renormalised.
    """
    return _divergence(_side(base, temperature, nucleus, most), other, temperature, nucleus, most, divergence)


@dataclass(frozen=True)
class _Side:
    """One side's tempered logits and nucleus."""

    logits: Float[Tensor, "pos vocab"]
    log_total: Float[Tensor, "pos 1"]
    ids: Int[Tensor, "pos kept"]
    kept: Bool[Tensor, "pos kept"]
    rest: Float[Tensor, " pos"]
    """Probability outside the nucleus, summed directly: one minus the inside would be rounding."""

    def at(self, part: slice) -> "_Side":
        return _Side(self.logits[part], self.log_total[part], self.ids[part], self.kept[part], self.rest[part])

    def log_probs(self, ids: Int[Tensor, "pos some"]) -> Float[Tensor, "pos some"]:
        return self.logits.gather(-1, ids).double() - self.log_total


def _side(
    logits: Float[Tensor, "pos vocab"],
    temperature: float,
    nucleus: float,
    most: int,
    beside: "_Side | None" = None,
) -> _Side:
    """Temper, find the nucleus, and sum what lies outside it, and outside the nucleus of ``beside`` where given."""
    scaled = logits / temperature
    top, ids = scaled.topk(min(most, scaled.shape[-1]), dim=-1)
    peak = top[:, :1]
    masses = (scaled - peak).exp_()
    total = masses.sum(-1, keepdim=True)
    log_total = peak.double() + total.double().log()
    probs = (top - log_total).exp()
    kept = probs.cumsum(-1) - probs < nucleus
    for each, inside in ((ids, kept), (beside.ids, beside.kept)) if beside is not None else ((ids, kept),):
        masses.scatter_(-1, torch.where(inside, each, each[:, :1]), 0.0)
    return _Side(scaled, log_total, ids, kept, masses.sum(-1).double() / total[:, 0])


def _divergence(
    base: _Side,
    other_logits: Float[Tensor, "pos vocab"],
    temperature: float,
    nucleus: float,
    most: int,
    divergence: Divergence,
) -> Float[Tensor, " pos"]:
    other = _side(other_logits, temperature, nucleus, most, beside=base)
    same = (base.ids[:, :, None] == other.ids[:, None]) & base.kept[:, :, None] & other.kept[:, None]
    union = torch.cat([base.kept, other.kept & ~same.any(1)], -1)
    p = torch.cat([base.log_probs(base.ids), base.log_probs(other.ids)], -1)
    q = torch.cat([other.log_probs(base.ids), other.log_probs(other.ids)], -1)
    if divergence == "published":
        in_base = torch.cat([base.kept, torch.zeros_like(other.kept)], -1)
        in_other = torch.cat([same.any(2), other.kept], -1)
        p = torch.where(in_base, p, MISSING / temperature).masked_fill(~union, -torch.inf).log_softmax(-1)
        q = torch.where(in_other, q, MISSING / temperature).masked_fill(~union, -torch.inf).log_softmax(-1)
        terms = torch.where(union & (p.exp() > 0), p.exp() * (p - q), 0.0)
        return terms.sum(-1).clamp(min=0.0)
    # p log(p/q) - p + q is never negative and vanishes to second order, so rounding of a total cannot pose as a KL.
    terms = torch.where(union, p.exp() * (p - q) - p.exp() + q.exp(), 0.0)
    extra = torch.where(union[:, base.ids.shape[1] :], p[:, base.ids.shape[1] :].exp(), 0.0).sum(-1)
    rest_p = (base.rest - extra).clamp(min=1e-38)
    rest_q = other.rest.clamp(min=1e-38)
    rest = rest_p * (rest_p / rest_q).log() - rest_p + rest_q
    return (terms.sum(-1) + rest).clamp(min=0.0)


class _Prefixed(Cache):
    """The shared prefix's keys and values in front of every row's own; nothing is stored."""

    def __init__(self, trunk: Trunk, length: int) -> None:
        super().__init__(layers=[])
        self.trunk, self.length = trunk, length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return prefix and new columns together."""
        keys, values = (side[layer_idx][None, :, : self.length] for side in (self.trunk.keys, self.trunk.values))
        rows = (len(key_states), -1, -1, -1)
        return torch.cat([keys.expand(rows), key_states], 2), torch.cat([values.expand(rows), value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions and masks are passed explicitly; nothing may be derived from this length."""
        return 0


class _Run:
    """The unmasked forward of one text, and masked runs against it."""

    @torch.inference_mode()
    def __init__(
        self,
        model: Model,
        ids: tuple[int, ...],
        targets: list[Span],
        temperature: float,
        nucleus: float,
        most: int,
        divergence: Divergence,
        shift: Shift,
    ) -> None:
        _check(model, ids)
        self.hf = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
        self.ids = torch.tensor([ids], device=model.device)
        self.lag = 1 if shift == "next token" else 0
        self.targets = [(max(a, self.lag), b) for a, b in targets]
        self.settings = (temperature, nucleus, most)
        self.divergence: Divergence = divergence
        self.trunk, _ = grow_trunk(self.hf, ids, None)
        # No source ends before the first target does, so no position before that is ever compared.
        self.first = targets[0][1] - self.lag if len(targets) > 1 else 0
        self.stop = self.targets[-1][1] - self.lag
        sides = [
            _side(self._logits(self.trunk.hidden[at : min(at + CHUNK, self.stop)]), *self.settings)
            for at in range(self.first, self.stop, CHUNK)
        ]
        joined = [torch.cat(parts) for parts in zip(*(vars(side).values() for side in sides), strict=True)]
        self.base = _Side(*joined)

    @torch.inference_mode()
    def measure(self, sources: Sequence[Span]) -> tuple[Float[np.ndarray, "target source"], list[bool]]:
        """Cells of ``sources``, hidden each in its own row of one pass, and which of them went blind."""
        begin = min(end for _, end in sources) - 1
        masks, blind = self._masks(sources, begin)
        hidden = self.hf.get_decoder()(
            input_ids=self.ids[:, begin : self.stop].expand(len(sources), -1),
            position_ids=torch.arange(begin, self.stop, device=self.ids.device)[None].expand(len(sources), -1),
            attention_mask=masks,
            past_key_values=_Prefixed(self.trunk, begin),
            use_cache=True,
        ).last_hidden_state
        out = np.full((len(self.targets), len(sources)), np.nan)
        for row, (_, end) in enumerate(sources):
            first = max(end - self.lag, self.first)
            if first >= self.stop:
                continue
            kl = np.log(self._compare(hidden[row, first - begin :], first) + FLOOR)
            for j, (a, b) in enumerate(self.targets):
                if a >= end:
                    out[j, row] = kl[a - self.lag - first : b - self.lag - first].mean()
        return out, blind

    def _compare(self, hidden: Float[Tensor, "pos d_model"], first: int) -> Float[np.ndarray, " pos"]:
        found = []
        for at in range(0, len(hidden), CHUNK):
            part = hidden[at : at + CHUNK]
            base = self.base.at(slice(first - self.first + at, first - self.first + at + len(part)))
            found.append(_divergence(base, self._logits(part), *self.settings, self.divergence))
        return torch.cat(found).cpu().numpy()

    def _logits(self, hidden: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos vocab"]:
        logits: Tensor = self.hf.get_output_embeddings()(hidden).float()
        cap = getattr(self.hf.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _masks(self, sources: Sequence[Span], begin: int) -> tuple[Tensor | dict[str, Tensor], list[bool]]:
        """Additive masks over all keys so far, by layer kind where kinds differ; and which rows have a blind query."""
        config = self.hf.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        windows = {kind: window if kind == "sliding_attention" else None for kind in set(kinds or [])} or {"": window}
        keys = torch.arange(self.stop, device=self.ids.device)
        queries = keys[begin:, None]
        starts, ends = (torch.tensor(side, device=self.ids.device) for side in zip(*sources, strict=True))
        hidden = (keys >= starts[:, None]) & (keys < ends[:, None])
        itself = queries == keys
        masks: dict[str, Tensor] = {}
        blind = torch.zeros(len(sources), dtype=torch.bool, device=self.ids.device)
        for kind, width in windows.items():
            seen = keys <= queries if width is None else (keys <= queries) & (queries - keys < width)
            allowed = seen & ~hidden[:, None]
            lost = ~allowed.any(-1, keepdim=True)
            # Only a source's last position and what follows is ever read.
            blind |= (lost[:, :, 0] & (queries[:, 0] >= ends[:, None] - self.lag)).any(-1)
            least = torch.finfo(self.trunk.hidden.dtype).min
            mask = torch.zeros(allowed.shape, dtype=self.trunk.hidden.dtype, device=self.ids.device)
            masks[kind] = mask.masked_fill_(~(allowed | (lost & itself)), least)[:, None]
        return masks if kinds else masks[""], blind.tolist()


def _check(model: Model, ids: tuple[int, ...]) -> None:
    how = model.hf.config._attn_implementation
    if how not in ("sdpa", "eager"):
        raise UsageError(f"attention {how!r} takes no mask; load the model with 'sdpa'")
    if len(ids) > model.n_ctx:
        raise UsageError(f"{len(ids)} tokens exceed the context of {model.name} ({model.n_ctx}); shorten the trace")
    scaled = [name for name in ("logit_scale", "logits_scaling") if getattr(model.hf.config, name, None)]
    if scaled:
        raise UsageError(f"{model.name} has {scaled[0]}, so its logits are not what the unembedding gives")


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
