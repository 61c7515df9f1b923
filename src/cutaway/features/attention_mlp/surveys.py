"""From neurons to statements: which heads drive each, in which contexts, and what both are worth.

Prompts to find heads and rules come from documents with even numbers; all scores and ablations are on prompts of the
others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cutaway.features.attention_mlp.decision import Decision, balanced_accuracy, decide
from cutaway.features.attention_mlp.effects import Drops, ablate
from cutaway.features.attention_mlp.method import (
    Attribution,
    NextToken,
    Place,
    active,
    attribute,
    contextual,
    shorten,
)
from cutaway.features.unit import ModelUnit, neuron, read_rows
from cutaway.model import Model

Row = tuple[int, ...]


@dataclass(frozen=True)
class HeadFinding:
    """One head that drives one neuron in some contexts."""

    layer: int
    head: int
    active_share: float
    """Of the prompts it was found on."""
    contribution: float
    """Mean first-order contribution where active, as a share of the activation."""
    decision: Decision
    score: float
    """Balanced accuracy on other documents; nan where the head is active on all or none of their prompts."""
    drop_active: float
    """Mean fall of the token's probability without the head, where it is active; nan as above."""
    drop_inactive: float
    log_drop: float
    """Median fall of log P where active."""
    random_active: float
    """The same two for a head drawn at random, on the same prompts."""
    random_inactive: float


@dataclass(frozen=True)
class NeuronFinding:
    """One neuron with its heads."""

    target: NextToken
    prompts: tuple[Row, ...]
    other: tuple[Row, ...]
    heads: tuple[HeadFinding, ...]
    explained: float
    """Share of the pre-activation from the heads listed; nan without heads."""
    labels: dict[Place, tuple[bool, ...]]
    """Activity of each listed head on the other documents' prompts."""
    first_order: tuple[float, ...]
    """Contributions of some heads ..."""
    lost: tuple[float, ...]
    """... and the activation lost without their output."""
    undefined: str = ""
    """Why there are no prompts."""

    def to_dict(self) -> dict[str, Any]:
        heads = [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(h).items()} for h in self.heads
        ]
        explained = None if math.isnan(self.explained) else self.explained
        return {**asdict(self.target), "heads": heads, "explained": explained, "undefined": self.undefined}


@dataclass(frozen=True)
class Prompts:
    """For each neuron the prompts that fire it, start tokens left out."""

    rows: list[list[Row]]


def unit_of(model: Model, target: NextToken) -> ModelUnit:
    """Return the neuron as a unit, on the side of its token."""
    return neuron(model, target.layer, target.neuron, negative=target.sign < 0)


def firing_prompts(
    model: Model,
    targets: Sequence[NextToken],
    rows: Sequence[Row],
    *,
    n: int = 20,
    keep: float = 0.8,
    least: float = 0.25,
    start: Row = (),
    longest: int = 100,
    shortened: bool = True,
    tick: Callable[[int], None] = lambda rows: None,
) -> Prompts:
    """Return up to ``n`` prompts a neuron, cut at the peak and to the shortest suffix; one pass serves all neurons.

    A prompt reaches at least ``least`` of the neuron's largest value on these rows.
    """
    units = [unit_of(model, target) for target in targets]
    peaks: dict[int, tuple[Float[Tensor, " unit"], Tensor]] = {}
    for i, values in read_rows(units, [(*start, *row) for row in rows], tokens=2048):
        best = values[len(start) :].max(0)
        peaks[i] = (best.values.cpu(), best.indices.cpu())
        tick(len(peaks))
    out = []
    for at, unit in enumerate(units):
        order = sorted(peaks, key=lambda i: -float(peaks[i][0][at]))[:n]
        floor = max(1e-6, least * float(peaks[order[0]][0][at]))
        full = [rows[i][: int(peaks[i][1][at]) + 1] for i in order if float(peaks[i][0][at]) >= floor]
        cut = shorten(unit, full, keep=keep, start=start) if shortened and full else full
        out.append([tuple(prompt) for prompt in cut if len(prompt) <= longest])
    return Prompts(out)


def survey(
    model: Model,
    targets: Sequence[NextToken],
    build: Prompts,
    other: Prompts,
    *,
    start: Row = (),
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[list[NeuronFinding], bool]:
    """Find heads and rules on ``build``, score and ablate on ``other``. Ctrl-C returns what is done, and False."""
    live = [i for i in range(len(targets)) if len(build.rows[i]) >= 4 and len(other.rows[i]) >= 4]
    places = [(targets[i].layer, targets[i].neuron) for i in live]
    done = [_none(target) for i, target in enumerate(targets) if i not in live]
    if not live:
        return done, True
    rng = np.random.default_rng(seed)
    try:
        both = [
            attribute(model, places, [[(*start, *row) for row in side.rows[i]] for i in live])
            for side in (build, other)
        ]
        for at, i in enumerate(live):
            found, held = both[0][at], both[1][at]
            done.append(_one(model, targets[i], found, held, build.rows[i], other.rows[i], start, rng))
            tick(len(done))
    except KeyboardInterrupt:
        return done, False
    return done, True


def _one(
    model: Model,
    target: NextToken,
    found: Attribution,
    held: Attribution,
    prompts: Sequence[Row],
    other: Sequence[Row],
    start: Row,
    rng: np.random.Generator,
) -> NeuronFinding:
    on, there = active(found, sign=target.sign), active(held, sign=target.sign)
    chosen = contextual(on)
    others = [place for place in np.ndindex(*on.shape[1:]) if place not in chosen]
    findings, labels = [], {}
    for layer, head in chosen:
        mine, theirs = on[:, layer, head], there[:, layer, head]
        decision = decide(prompts, mine.tolist())
        labels[layer, head] = tuple(map(bool, theirs.tolist()))
        random = others[rng.integers(len(others))]
        mixed = bool(theirs.any()) and not bool(theirs.all())
        starts = [(*start, *row) for row in other]
        drops = ablate(model, (layer, head), starts, target.token) if mixed else None
        control = ablate(model, random, starts, target.token) if mixed else None
        share = found.heads[mine, layer, head] / found.value[mine]
        findings.append(
            HeadFinding(
                layer,
                head,
                float(mine.float().mean()),
                float(share.mean()),
                decision,
                balanced_accuracy(decision, other, labels[layer, head]),
                _mean(drops, theirs),
                _mean(drops, ~theirs),
                math.nan if drops is None else float(drops.log[theirs].median()),
                _mean(control, theirs),
                _mean(control, ~theirs),
            )
        )
    flat = (found.heads.flatten(), found.without.flatten())
    some = rng.choice(len(flat[0]), min(40, len(flat[0])), replace=False)
    return NeuronFinding(
        target,
        tuple(prompts),
        tuple(other),
        tuple(findings),
        found.share(chosen) if chosen else math.nan,
        labels,
        tuple(map(float, flat[0][some])),
        tuple(map(float, flat[1][some])),
    )


def shuffled_scores(found: Sequence[NeuronFinding], seed: int = 0) -> list[float]:
    """Score every head's rule against the rule of another head drawn at random; same order as the heads."""
    pairs = [(one, head) for one in found for head in one.heads]
    rng = np.random.default_rng(seed)
    out = []
    for number, (one, head) in enumerate(pairs):
        rest = [other.decision for i, (_, other) in enumerate(pairs) if i != number]
        if not rest:
            out.append(math.nan)
            continue
        wrong = rest[rng.integers(len(rest))]
        out.append(balanced_accuracy(wrong, one.other, one.labels[head.layer, head.head]))
    return out


def random_neurons(
    model: Model, layers: Sequence[int], n: int, taken: Sequence[NextToken], pool: Sequence[NextToken], seed: int = 0
) -> list[NextToken]:
    """Return ``n`` neurons of the same layers at random, each with its own token, none of those taken."""
    used = {(each.layer, each.neuron) for each in taken}
    rest = [each for each in pool if (each.layer, each.neuron) not in used]
    order = np.random.default_rng(seed).permutation(len(rest))
    out: dict[Place, NextToken] = {}
    for i in order:
        each = rest[int(i)]
        if each.layer in layers:
            out.setdefault((each.layer, each.neuron), each)
        if len(out) == n:
            break
    return list(out.values())


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _mean(drops: Drops | None, which: Tensor) -> float:
    return math.nan if drops is None else float(drops.probability[which].mean())


def _none(target: NextToken) -> NeuronFinding:
    reason = "fires in fewer than four texts of one side"
    return NeuronFinding(target, (), (), (), math.nan, {}, (), (), reason)
