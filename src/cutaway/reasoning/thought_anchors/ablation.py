"""Do heads matter for what is written? Sampling with their output zeroed, against random heads of the same layers.

The edit acts on what enters the output projection; the published code zeroes slices after it, which are not heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.errors import UsageError
from cutaway.model import Mask
from cutaway.reasoning.rollouts import Report, draw_rollouts, rollout_seeds
from cutaway.reasoning.thought_anchors.receivers import Head, other_heads, plain_json
from cutaway.sampling import BranchTree, LocalEngine, Request, Settings
from cutaway.stats import Interval, paired_difference


@dataclass(frozen=True, repr=False)
class HeadAblation:
    """How often sampled texts pass, with heads zeroed and with random heads of the same layers zeroed."""

    heads: tuple[Head, ...]
    intact: float
    """Share of passing rollouts of the untouched model."""
    ablated: float
    effect: Interval
    """``ablated - intact``; same seeds, so rollouts are pairs; interval over prefixes where there are several."""
    random: tuple[float, ...]
    """Share of passing rollouts with each random set zeroed."""
    control: Interval
    """Mean over random sets of their ``ablated - intact``, as `effect`."""
    p: float
    """Share of random sets (this one counted in) that lower the rate at least as much."""
    n: int
    """Rollouts in each condition."""

    def __repr__(self) -> str:
        return f"HeadAblation({len(self.heads)} heads: {self.effect!r}, random {self.control!r}, p {self.p:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {key: plain_json(value) for key, value in asdict(self).items()}


def head_ablation(
    engine: LocalEngine,
    prefixes: Sequence[Sequence[int]],
    passes: Callable[[int, str], bool],
    heads: Sequence[Head],
    *,
    settings: Settings,
    n: int = 20,
    random_sets: int = 10,
    seed: int = 0,
    tree: BranchTree | None = None,
    report: Report = lambda done, planned, note: None,
) -> HeadAblation:
    """Sample ``n`` rollouts of each prefix intact, with ``heads`` zeroed, and with random heads of their layers zeroed.

    ``passes(prefix number, text)`` judges a rollout. The edit acts on what enters the output projection. Fewer than
    ``random_sets`` are run where the layers do not have that many. UsageError when a layer has too few other heads.
    """
    if not prefixes or not heads:
        raise UsageError("prefixes and heads must not be empty")
    rng = np.random.default_rng(seed)
    # A set drawn twice would give the same rollouts twice.
    drawn = list(dict.fromkeys(_random_heads(heads, engine.model.n_heads, rng) for _ in range(random_sets)))
    free = draw_rollouts(engine, prefixes, n, settings, seed=seed, tree=tree)
    texts = [[engine.model.decode(each.ids) for each in rollouts] for rollouts in free]
    intact = np.array([[passes(i, text) for text in row] for i, row in enumerate(texts)], dtype=float)
    rates = []
    for done, chosen in enumerate([tuple(heads), *drawn]):
        rates.append(_edited_rates(engine, prefixes, passes, chosen, settings, n, seed))
        report(done + 1, 1 + len(drawn), "conditions")
    changes = [each - intact for each in rates]
    control = np.mean(changes[1:], axis=0) if drawn else np.full_like(intact, np.nan)
    harm = [change.mean() for change in changes]
    return HeadAblation(
        heads=tuple(heads),
        intact=float(intact.mean()),
        ablated=float(rates[0].mean()),
        effect=_paired(rates[0], intact),
        random=tuple(float(each.mean()) for each in rates[1:]),
        control=_paired(intact + control, intact) if drawn else Interval(np.nan, np.nan, np.nan, 0, 0.95),
        p=sum(each <= harm[0] for each in harm) / len(harm),
        n=intact.size,
    )


def zeroed(heads: Sequence[Head]) -> list[Mask]:
    """The edits that zero ``heads`` where they enter the output projection."""
    layers = sorted({layer for layer, _ in heads})
    return [Mask(f"z.{layer}", [head for at, head in heads if at == layer]) for layer in layers]


def _random_heads(heads: Sequence[Head], n_heads: int, rng: np.random.Generator) -> tuple[Head, ...]:
    out: list[Head] = []
    for layer in sorted({layer for layer, _ in heads}):
        rest, wanted = other_heads(heads, layer, n_heads), sum(at == layer for at, _ in heads)
        if len(rest) < wanted:
            raise UsageError(f"layer {layer}: {wanted} of {n_heads} heads are zeroed; too few are left for a control")
        out += [(layer, int(head)) for head in rng.choice(rest, wanted, replace=False)]
    return tuple(out)


def _edited_rates(
    engine: LocalEngine,
    prefixes: Sequence[Sequence[int]],
    passes: Callable[[int, str], bool],
    heads: Sequence[Head],
    settings: Settings,
    n: int,
    seed: int,
) -> Float[np.ndarray, "prefix rollout"]:
    requests = [Request(tuple(prefix), rollout_seeds(prefix, n, seed), settings) for prefix in prefixes]
    out = np.zeros((len(prefixes), n))
    for i, rollout in engine.stream(requests, zeroed(heads)):
        out[i, requests[i].seeds.index(rollout.seed)] = passes(i, engine.model.decode(rollout.ids))
    return out


def _paired(a: Float[np.ndarray, "prefix rollout"], b: Float[np.ndarray, "prefix rollout"]) -> Interval:
    clusters = np.repeat(np.arange(len(a)), a.shape[1]) if len(a) > 1 else None
    return paired_difference(a.ravel(), b.ravel(), clusters=clusters)
