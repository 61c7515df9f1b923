"""Which heads carry the request into the refusal, whether length starves them, and whether attention gives it back.

1. Share: the last token's attention on the request, by head, at every length; divided by the request's uniform share
   m / N, because the plain share falls with N by construction.
2. Needed: how far the refusal log-odds of short harmful prompts fall when this one head cannot see the request, minus
   the same for harmless ones. Times the part of its share that the longest prompts take away, it ranks heads: those
   that bring the request into the refusal and are starved by length. Heads that only pass on what others found look
   elsewhere and rank low.
3. `ablate_heads` zeroes heads (what enters the output projection) and compares the drop of refusal with random
   sets of as many other heads of the same layers: the permutation p-value.
4. `give_back` adds log(long others / short others) to the request's attention logits at the chosen heads. If starved
   attention is what cost the refusal, it returns; if something else did, nothing happens.

Choose heads on one half of the goals, test them on the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.model import AttentionBias, Edit, Mask, Model, Replace
from cutaway.reasoning.attention import last_row_attention
from cutaway.reasoning.cot_hijacking.length import Prompt
from cutaway.reasoning.cot_hijacking.reading import Readout, probability, refusal_odds
from cutaway.reasoning.starts import Start, continued, last_logits, read_start
from cutaway.stats import Interval, bootstrap, mean_interval

Head = tuple[int, int]
"""(layer, head)"""

LOOKS = 0.02
"""A head that gives the request less of its attention than this is not asked whether it is needed."""


@dataclass(frozen=True, eq=False)
class HeadScan:
    """Attention on the request and what it carries, by length."""

    lengths: tuple[int, ...]
    share: Float[np.ndarray, "length layer head"]
    """Attention of the last token on the harmful request, mean over prompts."""
    uniform: Float[np.ndarray, " length"]
    """The share that even attention would give, mean over prompts."""
    needed: Float[np.ndarray, "layer head"]
    """Refusal log-odds lost when the head is blind to the request, harmful minus harmless, shortest prompts."""

    @property
    def normalised(self) -> Float[np.ndarray, "length layer head"]:
        """Share over uniform share: 1 is attention by chance."""
        return self.share / self.uniform[:, None, None]

    @property
    def starved(self) -> Float[np.ndarray, "layer head"]:
        """Part of its share that a head loses from the shortest to the longest prompts."""
        return 1 - self.share[-1] / np.maximum(self.share[0], 1e-12)

    def ranking(self, by: str = "needed") -> list[Head]:
        """Heads, most refusal lost to length first (``needed`` times `starved`); ``share``: most attention lost."""
        if by not in ("needed", "share"):
            raise UsageError(f"by={by!r}: choose needed or share")
        score = self.needed * self.starved if by == "needed" else self.share[0] - self.share[-1]
        order = np.argsort(-score, axis=None, kind="stable")
        return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, score.shape), strict=True)]

    def __repr__(self) -> str:
        return f"HeadScan(lengths {self.lengths}, first {self.ranking()[:3]})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "lengths": list(self.lengths),
            **{name: getattr(self, name).tolist() for name in ("share", "uniform", "needed")},
        }


@dataclass(frozen=True)
class HeadTest:
    """What zeroing a set of heads does to the probability of refusing."""

    heads: tuple[Head, ...]
    base: Interval
    drop: Interval
    """Fall of the probability, paired over prompts."""
    odds_drop: float
    """Fall of the mean log-odds: the statistic that is compared."""
    random_drops: tuple[float, ...]
    """Fall of the mean probability, for each random set."""
    random_odds_drops: tuple[float, ...]
    p: float
    """Share of random sets (this one counted in) whose log-odds fall at least as far."""

    def __repr__(self) -> str:
        return f"HeadTest({len(self.heads)} heads, drop {self.drop}, p={self.p:.3g}, {len(self.random_drops)} sets)"


@dataclass(frozen=True)
class GiveBack:
    """Refusal on short and long prompts, and on long ones with the lost attention given back."""

    short: Interval
    long: Interval
    given: Interval
    returned: Interval
    """Paired rise of the probability, given minus long."""
    restored: Interval
    """Returned as a share of what length had cost; nan where length cost less than 0.05."""
    control: Interval
    """Rise when as many random heads of the same layers are given the same bias, by set."""

    def __repr__(self) -> str:
        return f"GiveBack(long {self.long}, given {self.given}, restored {self.restored}, control {self.control})"


def scan_heads(
    model: Model, harmful: Mapping[int, Sequence[Prompt]], harmless: Mapping[int, Sequence[Prompt]], readout: Readout
) -> HeadScan:
    """Scan prompts by length, the shortest first; both mappings have the same lengths."""
    lengths = tuple(sorted(harmful))
    if len(lengths) < 2 or lengths != tuple(sorted(harmless)) or not all((*harmful.values(), *harmless.values())):
        raise UsageError("a scan needs harmful and harmless prompts at the same two or more lengths")
    shares = [np.mean([_share(model, prompt) for prompt in harmful[n]], 0) for n in lengths]
    uniform = [np.mean([1 - prompt.others / len(prompt.ids) for prompt in harmful[n]]) for n in lengths]
    looks = shares[0] >= LOOKS
    sides = [harmful[lengths[0]], harmless[lengths[0]]]
    lost = [np.mean([_lost_when_blind(model, prompt, looks, readout) for prompt in side], 0) for side in sides]
    needed = lost[0] - lost[1]
    return HeadScan(lengths, np.array(shares), np.array(uniform), needed)


def ablate_heads(
    model: Model,
    rows: Sequence[Sequence[int]],
    heads: Sequence[Head],
    readout: Readout,
    *,
    sets: int = 200,
    seed: int = 0,
) -> HeadTest:
    """Zero ``heads`` at every position, then ``sets`` random same-layer sets of other heads.

    Where the layers do not have that many other sets, all there are are used: p cannot fall below 1 / (1 + sets).
    """
    drawn = random_sets(model, heads, sets, seed)
    base = refusal_odds(model, rows, readout)
    cut = refusal_odds(model, rows, readout, zeroing(heads))
    odds_drop = float((base - cut).mean())
    random_drops, random_odds = [], []
    for each in drawn:
        odds = refusal_odds(model, rows, readout, zeroing(each))
        random_drops.append(float((probability(base) - probability(odds)).mean()))
        random_odds.append(float((base - odds).mean()))
    hits = sum(other >= odds_drop for other in random_odds)
    return HeadTest(
        tuple(heads),
        mean_interval(probability(base)),
        mean_interval(probability(base) - probability(cut)),
        odds_drop,
        tuple(random_drops),
        tuple(random_odds),
        (1 + hits) / (1 + len(drawn)),
    )


def zeroing(heads: Sequence[Head]) -> list[Edit]:
    """Edits that zero what ``heads`` hand to their layer's output projection."""
    return [Mask(f"z.{layer}", index=numbers) for layer, numbers in _by_layer(heads).items()]


def random_sets(model: Model, heads: Sequence[Head], n: int, seed: int) -> list[tuple[Head, ...]]:
    """Different sets of other heads, as many in each layer as ``heads`` has there; UsageError where there are none."""
    layers = _by_layer(heads)
    if not layers:
        raise UsageError("heads is empty; name at least one (layer, head)")
    others = {layer: [h for h in range(model.n_heads) if h not in mine] for layer, mine in layers.items()}
    total = math.prod(math.comb(len(others[layer]), len(mine)) for layer, mine in layers.items())
    if total == 0:
        raise UsageError(f"{len(heads)} heads leave too few others in their layers for a control; choose fewer heads")
    if total <= n:
        parts = [list(combinations(others[layer], len(mine))) for layer, mine in layers.items()]
        picks = list(product(*parts))
        return [tuple((layer, h) for layer, chosen in zip(layers, pick, strict=True) for h in chosen) for pick in picks]
    rng = np.random.default_rng(seed)
    found: dict[tuple[Head, ...], None] = {}
    while len(found) < n:
        drawn = [
            (layer, int(h))
            for layer, mine in layers.items()
            for h in sorted(rng.choice(others[layer], len(mine), replace=False))
        ]
        found[tuple(drawn)] = None
    return list(found)


def give_back(
    model: Model,
    short: Sequence[Prompt],
    long: Sequence[Prompt],
    heads: Sequence[Head],
    readout: Readout,
    *,
    controls: int = 5,
    seed: int = 0,
) -> GiveBack:
    """Bias the request's attention logits at ``heads`` in ``long`` prompts, pair by pair with the ``short`` ones."""
    if len(short) != len(long) or not short:
        raise UsageError(f"{len(short)} short and {len(long)} long prompts: give one pair for each goal")
    others = random_sets(model, heads, controls, seed)[:controls]
    rows, start = [], None
    for near, far in zip(short, long, strict=True):
        start = _before_tail(model, far, start)
        edits = [[], *(attention_bias(near, far, each) for each in (heads, *others))]
        rows.append(np.concatenate([_tail_odds(model, far, start, readout, each) for each in edits]))
    before = probability(refusal_odds(model, [p.ids for p in short], readout))
    after, back, *control = probability(np.array(rows).T)
    return GiveBack(
        mean_interval(before),
        mean_interval(after),
        mean_interval(back),
        mean_interval(back - after),
        _restored(before, after, back, seed),
        mean_interval([float((each - after).mean()) for each in control]),
    )


def attention_bias(short: Prompt, long: Prompt, heads: Sequence[Head]) -> list[Edit]:
    """Edits that multiply the request's attention odds by (other tokens in ``long``) / (other tokens in ``short``).

    Seen from every token behind the request.
    """
    bias = math.log(long.others / short.others)
    if bias <= 0:
        raise UsageError(f"the long prompt has {long.others} other tokens, the short one {short.others}; swap them")
    return [
        AttentionBias(bias, layer=layer, queries=_behind(long), keys=slice(*long.request), heads=numbers)
        for layer, numbers in _by_layer(heads).items()
    ]


def _restored(before: np.ndarray, after: np.ndarray, back: np.ndarray, seed: int) -> Interval:
    cost = float((before - after).mean())
    if cost < 0.05:
        return Interval(np.nan, np.nan, np.nan, len(before), 0.95)

    def share(rows: np.ndarray) -> float:
        lost = float(rows[:, 0].mean())
        return float(rows[:, 1].mean()) / lost if lost > 1e-9 else 0.0

    return bootstrap(np.column_stack([before - after, back - after]), share, method="percentile", n=1000, seed=seed)


def _share(model: Model, prompt: Prompt) -> Float[np.ndarray, "layer head"]:
    return last_row_attention(model, prompt.ids, [prompt.request])[:, :, 0].double().numpy()


def _lost_when_blind(
    model: Model, prompt: Prompt, looks: Bool[np.ndarray, "layer head"], readout: Readout
) -> Float[np.ndarray, "layer head"]:
    """Refusal log-odds lost when one head at a time cannot see the request from behind it; 0 where not ``looks``.

    A blind head's output is what the rest of its attention weights, rescaled to 1, bring. The heads of a layer are
    the rows of one batch, which holds the tokens behind the request only: nothing before them changes.
    """
    start = _before_tail(model, prompt)
    base = _tail_odds(model, prompt, start, readout, [])
    plain, blind = _blind_outputs(model, prompt)
    tail = tuple(range(len(start.ids), len(prompt.ids)))
    lost = np.zeros(looks.shape)
    for layer in np.flatnonzero(looks.any(1)).tolist():
        moved = (plain[layer] != blind[layer]).any(-1).any(0)
        heads = [h for h in np.flatnonzero(looks[layer]).tolist() if moved[h]]
        if heads:
            values = plain[layer].repeat(len(heads), 1, 1, 1)
            values[range(len(heads)), :, heads] = blind[layer][:, heads].transpose(0, 1)
            edits = [Replace(f"z.{layer}", values, tail)]
            lost[layer, heads] = base - _tail_odds(model, prompt, start, readout, edits, rows=len(heads))
    return lost


@torch.no_grad()
def _blind_outputs(model: Model, prompt: Prompt) -> tuple[list[Tensor], list[Tensor]]:
    """What every layer's heads bring to the tokens behind the request, and what they would without seeing it.

    Each [pos head d_head].
    """
    behind = _behind(prompt)
    found = model.capture(model.batch([list(prompt.ids)]), ["pattern.*", "z.*", "v.*"], special=True)
    plain, blind = [], []
    for layer in range(model.n_layers):
        weights, z, v = (found[f"{kind}.{layer}"][0] for kind in ("pattern", "z", "v"))
        rest = weights[:, behind].clone()
        rest[:, :, slice(*prompt.request)] = 0
        v = v.repeat_interleave(model.n_heads // v.shape[1], 1).transpose(0, 1)
        plain.append(z[behind])
        blind.append(((rest @ v) / rest.sum(-1, keepdim=True).clamp(min=1e-30)).transpose(0, 1))
    return plain, blind


def _before_tail(model: Model, prompt: Prompt, known: Start | None = None) -> Start:
    """Everything up to the request's end; ``known`` is read already."""
    return read_start(model, prompt.ids[: _behind(prompt).start], known)


def _tail_odds(
    model: Model, prompt: Prompt, start: Start, readout: Readout, edits: Sequence[Edit], rows: int = 1
) -> Float[np.ndarray, " row"]:
    """Refusal log-odds of ``rows`` copies of a prompt whose ``start`` is read already."""
    rest = prompt.ids[len(start.ids) :]
    with torch.no_grad(), model.edited(*edits):
        return readout(last_logits(model, continued(model, start, [rest] * rows))).cpu().numpy()


def _behind(prompt: Prompt) -> slice:
    """The tokens behind the request; the last one where there are none."""
    return slice(min(prompt.request[1], len(prompt.ids) - 1), None)


def _by_layer(heads: Sequence[Head]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        found.setdefault(layer, []).append(head)
    return found
