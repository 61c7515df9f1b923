"""Forced histories: the causal effect of earlier answers, by asking the same question after different ones.

For each target item the earlier questions are fixed and only the earlier *answers* are written by us: all with the
behaviour (``+``) or all without (``-``). The two histories have the same questions, so difficulty, topic and
dialogue cancel; the paired risk difference is the effect of the answers and of nothing else.

1. `make_targets` draws the earlier questions of each target.
2. `Arm` says which answers stand in them; `contrasts` lists the pairs of arms: dose (k turns), distance (one ``+``
   turn d turns ago), other topic, placebo (two ``-`` histories with different questions), and repairs.
3. `run_forced` asks every target under every arm; `effect` compares two arms over the same targets.

A risk difference has the interval of Bonett and Price (2012) and McNemar's exact p. Both hold for one draw a target;
a target that is asked several times is a cluster, and clusters give the interval then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int
from scipy.stats import norm

from cutaway.errors import UsageError
from cutaway.reasoning.history_echoes.data import Item
from cutaway.reasoning.history_echoes.dialogue import UNKNOWN, Asked, Chat, Turn
from cutaway.reasoning.history_echoes.phenomena import Phenomenon
from cutaway.stats import mcnemar, paired_difference, wilson
from cutaway.study import Finding

if TYPE_CHECKING:
    import pandas as pd

Source = Literal["same", "other", "again"]
Repair = Literal["", "correct", "apologise"]
Answers = Int[np.ndarray, "_target"]


@dataclass(frozen=True)
class Arm:
    """One kind of history: a mark a turn, oldest first."""

    marks: str = ""
    """``+`` and ``-``, one an earlier turn; empty: no history."""
    source: Source = "same"
    """Whose questions: the target's topic, another topic, or a second draw of the target's topic."""
    repair: Repair = ""
    """A last turn that repairs."""

    def __post_init__(self) -> None:
        if set(self.marks) - set("+-"):
            raise UsageError(f"marks={self.marks!r}: use + and - only")
        if self.repair and not self.marks:
            raise UsageError(f"repair={self.repair!r}: there is no history to repair")

    def __str__(self) -> str:
        return " ".join(
            part for part in (self.marks or "empty", self.source * (self.source != "same"), self.repair) if part
        )


@dataclass(frozen=True)
class Contrast:
    """Treated against control, over the same targets."""

    name: str
    treated: Arm
    control: Arm


@dataclass(frozen=True)
class Target:
    """An item to ask, and the items that stand before it."""

    item: Item
    same: tuple[Item, ...]
    other: tuple[Item, ...]
    again: tuple[Item, ...]
    cluster: int


@dataclass(frozen=True)
class Effect:
    """One contrast, measured."""

    name: str
    treated: Finding
    """P(+) in the treated arm, over the pairs kept."""
    control: Finding
    difference: Finding
    """Risk difference, treated minus control."""
    p: float | None
    """McNemar's exact two-sided p; None where there is no pair, or targets repeat."""
    left_out: int
    """Pairs without an answer in one arm."""


@dataclass(frozen=True, repr=False)
class ForcedResult:
    """Every arm's outcomes and every contrast's effect."""

    arms: Mapping[str, tuple[int, ...]]
    """Arm to one outcome a target: 1, 0, or -1 where there was no answer."""
    effects: tuple[Effect, ...]
    targets: int
    complete: bool = True

    def __getitem__(self, name: str) -> Effect:
        """The effect called ``name``."""
        found = {effect.name: effect for effect in self.effects}
        if name not in found:
            raise KeyError(f"no contrast {name!r}; there are {', '.join(found)}")
        return found[name]

    def __repr__(self) -> str:
        return f"ForcedResult({self.targets} targets; {self.effects[0].difference if self.effects else 'no contrast'})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"arms": {name: list(values) for name, values in self.arms.items()}}

    def to_frame(self) -> "pd.DataFrame":
        """One row a contrast."""
        import pandas as pd

        rows = [
            {
                "contrast": e.name,
                "treated": e.treated.value,
                "control": e.control.value,
                "difference": e.difference.value,
                "low": e.difference.low,
                "high": e.difference.high,
                "p": e.p,
                "pairs": e.difference.n,
            }
            for e in self.effects
        ]
        return pd.DataFrame(rows)


def contrasts(doses: Sequence[int] = (1, 2, 4, 7), distances: Sequence[int] = (2, 4)) -> tuple[Contrast, ...]:
    """The standard set. ``dose k`` of the largest k is the main effect.

    ``delete`` compares no history with the ``+`` history, ``correct`` and ``apologise`` a repaired one with it:
    negative numbers are repairs that work.
    """
    if not doses or min(doses) < 1 or any(d < 2 for d in distances):
        raise UsageError(f"doses={tuple(doses)}, distances={tuple(distances)}: doses from 1, distances from 2 on")
    most = max(doses)
    plus, minus = Arm("+" * most), Arm("-" * most)
    found = [Contrast(f"dose {k}", Arm("+" * k), Arm("-" * k)) for k in sorted(doses, reverse=True)]
    found += [Contrast(f"distance {d}", Arm("+" + "-" * (d - 1)), Arm("-" * d)) for d in distances]
    return (
        *found,
        Contrast("other topic", Arm("+" * most, "other"), Arm("-" * most, "other")),
        Contrast("placebo", Arm("-" * most, "again"), minus),
        Contrast("history of - against none", minus, Arm()),
        Contrast("delete", Arm(), plus),
        Contrast("correct", Arm("+" * most, "same", "correct"), plus),
        Contrast("apologise", Arm("+" * most, "same", "apologise"), plus),
    )


def make_targets(items: Sequence[Item], n: int, history: int, *, seed: int = 0) -> tuple[Target, ...]:
    """``n`` targets with ``history`` earlier items from each source; an item is asked again once all were asked.

    No earlier item is the target, and none has the target's answer. A topic that stands alone serves as its own
    other topic.
    """
    rng = np.random.default_rng(seed)
    order = [int(i) for _ in range(-(-n // max(len(items), 1))) for i in rng.permutation(len(items))][:n]
    targets = []
    for i in order:
        item = items[i]
        same = [each for each in items if each.topic == item.topic and each.answer != item.answer]
        others = [each for each in items if each.topic != item.topic] or same
        if len(same) < history or len(others) < history:
            raise UsageError(f"history={history}: topic {item.topic!r} leaves {len(same)} items, others {len(others)}")
        first, second, third = (
            tuple(pool[j] for j in rng.choice(len(pool), history, replace=False)) for pool in (same, others, same)
        )
        targets.append(Target(item, first, second, third, i))
    return tuple(targets)


def history_of(target: Target, arm: Arm, phenomenon: Phenomenon) -> tuple[Turn, ...]:
    """The turns before the target under one arm. All arms of a source use its items from the first one on."""
    items = getattr(target, arm.source)[: len(arm.marks)]
    if len(items) < len(arm.marks):
        raise UsageError(f"arm {arm}: the target has only {len(items)} earlier items")
    answers = {"+": phenomenon.plus, "-": phenomenon.minus}
    turns = [(phenomenon.ask(item), answers[mark](item)) for item, mark in zip(items, arm.marks, strict=True)]
    if arm.repair == "correct":
        right = " ".join(phenomenon.minus(item) for item, mark in zip(items, arm.marks, strict=True) if mark == "+")
        turns.append((f"Your answers above should have been: {right}", "Thank you. That is what I should have said."))
    if arm.repair == "apologise":
        turns.append(("Your answers above were not good.", "I apologise for them. I will answer properly from now on."))
    return tuple(turns)


def run_forced(
    chat: Chat,
    targets: Sequence[Target],
    phenomenon: Phenomenon,
    plan: Sequence[Contrast],
    *,
    width: int = 16,
    level: float = 0.95,
    report: Callable[[int, int, str], None] = lambda done, planned, note: None,
) -> ForcedResult:
    """Ask every target under every arm of ``plan`` and compare. Ctrl-C returns what is known, ``complete=False``.

    ``width`` targets go together, arm by arm, so that an arm reuses what its prefix arms have computed.
    """
    # Longer histories first: a shorter one of the same marks is then a crop of it.
    arms = sorted(
        {arm for contrast in plan for arm in (contrast.treated, contrast.control)},
        key=lambda arm: (arm.source, arm.marks[:1], arm.repair, -len(arm.marks), arm.marks),
    )
    outcomes = {arm: np.full(len(targets), UNKNOWN) for arm in arms}
    complete, done = True, 0
    try:
        for at in range(0, len(targets), width):
            group = targets[at : at + width]
            for arm in arms:
                asked = [Asked(history_of(each, arm, phenomenon), phenomenon.ask(each.item)) for each in group]
                found = [r.outcome(phenomenon, t.item) for r, t in zip(chat.replies(asked), group, strict=True)]
                outcomes[arm][at : at + width] = found
                done += len(group)
                report(done, len(targets) * len(arms), "forced answers")
    except KeyboardInterrupt:
        complete = False
    clusters = np.array([target.cluster for target in targets])
    repeated = len(np.unique(clusters)) < len(clusters)
    effects = tuple(
        effect(c.name, outcomes[c.treated], outcomes[c.control], clusters if repeated else None, level) for c in plan
    )
    kept = {str(arm): tuple(int(y) for y in values) for arm, values in outcomes.items()}
    return ForcedResult(kept, effects, len(targets), complete)


def effect(
    name: str, treated: Answers, control: Answers, clusters: Answers | None = None, level: float = 0.95
) -> Effect:
    """Compare two arms over the same targets; pairs with an unknown outcome are left out and counted."""
    if treated.shape != control.shape:
        raise UsageError(f"{name}: {len(treated)} treated and {len(control)} control outcomes; pairs need one of each")
    known = (treated >= 0) & (control >= 0)
    a, b = treated[known], control[known]
    n, left_out = int(known.sum()), int((~known).sum())
    risks = [wilson(int(y.sum()), n, level) for y in (a, b)]
    names = f"P(+), {name}, treated", f"P(+), {name}, control"
    if n < 2:
        why = f"{n} pairs have an answer in both arms"
        treated_risk, control_risk = (Finding(each, None, undefined=why) for each in names)
        return Effect(
            name, treated_risk, control_risk, Finding(f"effect of {name}", None, undefined=why), None, left_out
        )
    treated_risk, control_risk = (
        Finding(each, r.value, r.low, r.high, level, n) for each, r in zip(names, risks, strict=True)
    )
    groups = None if clusters is None else clusters[known]
    low, high = _interval(a, b, groups, level)
    difference = Finding(f"effect of {name}", float(a.mean() - b.mean()), low, high, level, n, "change of P(+)")
    p = mcnemar(int((a > b).sum()), int((a < b).sum())) if clusters is None else None
    return Effect(name, treated_risk, control_risk, difference, p, left_out)


def _interval(a: Answers, b: Answers, clusters: Answers | None, level: float) -> tuple[float | None, float | None]:
    if clusters is not None:
        found = paired_difference(a, b, level, clusters)
        # Clusters that all agree know no width.
        return (found.low, found.high) if found.high > found.low else (None, None)
    n = len(a)
    first, second = (((a > b).sum() + 1) / (n + 2), ((a < b).sum() + 1) / (n + 2))
    centre = first - second
    half = norm.ppf((1 + level) / 2) * np.sqrt((first + second - centre**2) / (n + 2))
    value = float(a.mean() - b.mean())
    return min(float(max(centre - half, -1.0)), value), max(float(min(centre + half, 1.0)), value)
