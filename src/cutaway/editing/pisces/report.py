"""What an erasure says: efficacy, specificity, coherence and robustness, each beside its controls."""

from collections.abc import Sequence

from cutaway.charts import Chart, Series
from cutaway.editing.pisces.erasing import Erased
from cutaway.stats import Interval
from cutaway.study import Finding

_CONTROLS = ("random features", "shuffled signs", "gradient ascent")
_PARTS = (
    ("efficacy: concept facts known", "concept"),
    ("specificity: similar facts known", "similar"),
    ("specificity: other facts known", "general"),
)


def findings(found: Erased) -> list[Finding]:
    """Return every number on the test questions; the model before, and equal-norm controls, are their controls."""
    if found.edit is None:
        seen = f"{found.search.judged} settings judged"
        return [Finding("efficacy: concept facts known", None, undefined=f"no acceptable setting; {seen}")]
    if "edited" not in found.arms:
        return [Finding("efficacy: concept facts known", None, undefined="stopped before the edit was judged")]
    before, after = found.arms["before"], found.arms["edited"]
    items = []
    for title, name in _PARTS:
        known = Finding.of(f"{title}, before", before.interval(name))
        items.append(Finding.of(title, after.interval(name), control=known))
        items.append(Finding.of(f"{title}, change", after.change(before, name)))
    items.append(
        Finding.of(
            "coherence: perplexity on neutral text",
            after.perplexity(before),
            unit="x before",
            control=_one(found, "perplexity"),
        )
    )
    for control in _CONTROLS:
        if control in found.arms:
            arm = found.arms[control]
            items.append(Finding.of(f"concept facts known, {control}", arm.interval("concept")))
            items.append(Finding.of(f"perplexity, {control}", arm.perplexity(before), unit="x before"))
    base = found.relearnt.get("gradient ascent")
    for name, curve in found.relearnt.items():
        other = None if base is None or name != "edited" else Finding("the same after gradient ascent", base[-1][1])
        title = f"robustness: test facts known after {curve[-1][0]} steps on others, {name}"
        items.append(Finding(title, curve[-1][1], n=found.asked, control=other))
    if found.search.best is not None and found.search.best.judged is not None:
        items.append(Finding("harmonic mean on tune questions", found.search.best.judged.score))
    items.append(Finding("rows changed", float(len(found.edit)), n=len(found.features)))
    items.append(Finding("settings judged", float(found.search.judged), n=len(found.search.tried)))
    saved = 1 - found.edit.multiplications / found.edit.reference
    items.append(Finding("multiplications saved against coding every neuron", saved))
    return items


def summarise(found: Erased) -> str:
    """Return one line."""
    if found.edit is None:
        return f"{found.concept}: no acceptable setting among {found.search.judged} judged"
    if "edited" not in found.arms:
        return f"{found.concept}: stopped before the edit was judged"
    before, after = found.arms["before"], found.arms["edited"]
    parts = [f"{title} {before.interval(n).value:.0%} -> {after.interval(n).value:.0%}" for title, n in _short()]
    return (
        f"{found.concept}: {', '.join(parts)}, perplexity x{after.perplexity(before).value:.3f};"
        f" {len(found.edit)} rows of {len(found.edit.rows)} layers"
    )


def charts(found: Erased) -> tuple[Chart, ...]:
    """Return bars of every arm and the curves of relearning."""
    arms = tuple(found.arms)
    if not arms:
        return ()
    bars = tuple(_bars(title, [found.arms[arm].interval(name) for arm in arms]) for title, name in _short())
    made = [Chart("What is left", arms, bars, y_label="share of facts known")]
    if found.relearnt:
        steps = tuple(float(step) for step, _ in next(iter(found.relearnt.values())))
        lines = tuple(
            Series(name, tuple(score for _, score in curve), control=name == "before")
            for name, curve in found.relearnt.items()
            if len(curve) == len(steps)
        )
        made.append(Chart("Relearning from facts with other answers", steps, lines, "steps", "test facts known"))
    return tuple(made)


def _short() -> Sequence[tuple[str, str]]:
    return (("concept", "concept"), ("similar", "similar"), ("other", "general"))


def _bars(title: str, values: Sequence[Interval]) -> Series:
    low, high = tuple(each.low for each in values), tuple(each.high for each in values)
    return Series(title, tuple(each.value for each in values), low, high)


def _one(found: Erased, what: str) -> Finding | None:
    arm = found.arms.get("random features")
    return None if arm is None else Finding(f"{what}, random features", arm.perplexity(found.arms["before"]).value)
