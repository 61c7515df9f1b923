"""From a concept to an edit, and from an edit to a verdict: filter, search, controls, baseline, relearning.

1. Candidate features of the concept's words (`candidates`); those that do nothing, or do harm alone, are left out.
2. Signs are counted on the concept's text; (tau, mu) is searched on the tune questions (`search`).
3. Judged on test questions: the model before; edited; edited along random features of equal norm; with shuffled signs;
   and after gradient ascent stopped at the same efficacy, the baseline that trains.
4. Robustness: each of these learns from the concept's lessons, in the same order, and is asked those of the test facts
   whose answers no lesson has told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cutaway.editing.concepts import Concept, Part
from cutaway.editing.facts import answers, single_tokens, text_loss
from cutaway.editing.learning import gradient_ascent, relearning
from cutaway.editing.pisces.method import (
    Dictionaries,
    candidates,
    make_edit,
    random_control,
    shuffled_control,
    signs,
)
from cutaway.editing.pisces.searching import MUS, TAUS, Judged, Search, search
from cutaway.editing.rows import Edit, Feature, applied, rewritten
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, clopper_pearson, mean_interval, share_difference
from cutaway.training import TrainConfig


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model knows of one part, fact by fact, and how well it writes neutral text."""

    concept: Float[np.ndarray, " fact"]
    """1 where the answer is the most probable token, else 0."""
    similar: Float[np.ndarray, " other"]
    general: Float[np.ndarray, " rest"]
    logp: Float[np.ndarray, " fact"]
    """Of the concept's answers, nats."""
    loss: Float[np.ndarray, " text"]
    """Nats per token of neutral text."""

    def over(self, before: "Scores") -> Judged:
        """Return these as shares of what the model did before; UsageError where it knew nothing."""
        base = {name: float(getattr(before, name).mean()) for name in ("concept", "similar", "general")}
        if unknown := [name for name, known in base.items() if known == 0]:
            raise UsageError(f"before the edit the model knows none of the {unknown[0]} facts; nothing to judge")
        shares = {name: float(getattr(self, name).mean()) / known for name, known in base.items()}
        fluency = float(np.exp(before.loss.mean() - self.loss.mean()))
        return Judged(**shares, fluency=fluency, logp=float(self.logp.mean()))

    def interval(self, name: str) -> Interval:
        """Return the share of ``concept``, ``similar`` or ``general`` facts known, with its exact interval."""
        known = getattr(self, name)
        return clopper_pearson(int(known.sum()), len(known))

    def change(self, before: "Scores", name: str) -> Interval:
        """Return the mean paired difference to ``before``, over facts."""
        return share_difference(getattr(self, name), getattr(before, name))

    def perplexity(self, before: "Scores") -> Interval:
        """Return perplexity on neutral text, over before; paired over texts."""
        found = mean_interval(self.loss - before.loss)
        value, low, high = (float(np.exp(x)) for x in (found.value, found.low, found.high))
        return Interval(value, low, high, found.n, found.level)


def scores(model: Model, part: Part, neutral: Sequence[str]) -> Scores:
    """Ask every fact of ``part`` in its first wording."""
    concept = answers(model, part.concept)
    similar, general = (answers(model, facts).known.astype(float) for facts in (part.similar, part.general))
    return Scores(concept.known.astype(float), similar, general, concept.logp, text_loss(model, neutral))


def find_features(
    model: Model,
    dictionaries: Dictionaries,
    concept: Concept,
    *,
    top: int = 1,
    ends: str = "top",
    check: bool = True,
    taus: Sequence[float] = TAUS,
    mus: Sequence[float] = MUS,
) -> tuple[Feature, ...]:
    """Return the concept's features; with ``check`` those that do nothing or do harm alone are left out (`useful`).

    UsageError for words of several tokens, unknown ``ends``, and where no feature is left.
    """
    if ends not in ("top", "both"):
        raise UsageError(f"ends={ends!r}: top (favours the words) or both")
    words = dict(zip(single_tokens(model, concept.words), concept.words, strict=True))
    found = [each for each in candidates(model, dictionaries, words, top=top) if each.favours or ends == "both"]
    if check:
        found = list(useful(model, dictionaries, found, concept, taus=taus, mus=mus))
    if not found:
        raise UsageError(f"no feature of {concept.name!r} in these dictionaries; raise top, or give other layers")
    return tuple(found)


def useful(
    model: Model,
    dictionaries: Dictionaries,
    found: Sequence[Feature],
    concept: Concept,
    *,
    taus: Sequence[float] = TAUS,
    mus: Sequence[float] = MUS,
    harm: float = 0.02,
) -> tuple[Feature, ...]:
    """Return features that fire on the concept's text and, edited alone, do not raise its answers or harm the rest.

    A feature is tried at the medians of what will be searched: far above them every one does harm.
    Raise: their mean probability grows by more than a thousandth; where the model is sure of every answer, smaller
    changes are noise. Harm: accuracy on general tune questions falls by more than ``harm``, or perplexity on neutral
    text doubles.
    """
    tau, mu = float(np.median(taus)), float(np.median(mus))
    before = scores(model, concept.tune, concept.neutral)
    ids = [model.encode(text) for text in concept.texts]
    kept = []
    for layer in sorted({each.layer for each in found}):
        site = f"mlp_out.{layer}"
        with torch.no_grad():
            states = model.capture(model.batch(ids), site, special=True).flat(site)
            fires = (dictionaries[layer].encode(states.float()).dense() > 0).any(0)
        for each in (one for one in found if one.layer == layer and fires[one.index]):
            with applied(model, make_edit(model, dictionaries, [each], tau=tau, mu=mu)):
                after = scores(model, concept.tune, concept.neutral)
            raised = float((np.exp(after.logp) - np.exp(before.logp)).mean())
            harmless = after.general.mean() >= before.general.mean() - harm
            if raised <= 1e-3 and harmless and after.loss.mean() - before.loss.mean() < np.log(2):
                kept.append(each)
    return tuple(kept)


@dataclass(frozen=True, eq=False)
class Erased:
    """A concept taken out: the edit, how it was found, and every arm on the test questions."""

    concept: str
    edit: Edit | None
    """None where no setting met the limits."""
    search: Search
    features: tuple[Feature, ...]
    arms: dict[str, Scores]
    """``before``, ``edited``, ``random features``, ``shuffled signs``, ``gradient ascent``."""
    relearnt: dict[str, tuple[tuple[int, float], ...]]
    """By arm: (steps, share known of the test facts that no lesson answers)."""
    asked: int
    """How many these are."""
    complete: bool = True

    def __repr__(self) -> str:
        if self.edit is None:
            return f"Erased({self.concept}: no acceptable setting, {self.search.judged} judged)"
        known = [self.arms[name].interval("concept") for name in ("before", "edited")]
        return f"Erased({self.concept}: known {known[0]!r} -> {known[1]!r}, {len(self.edit)} rows)"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data, with every changed row."""
        return {
            "concept": self.concept,
            "complete": self.complete,
            "features": [vars(each) for each in self.features],
            "search": self.search.to_dict(),
            "rows": [] if self.edit is None else [list(row) for row in self.edit.changed],
            "arms": {name: _plain(arm) for name, arm in self.arms.items()},
            "relearnt": {name: [list(point) for point in curve] for name, curve in self.relearnt.items()},
        }


def erase(
    model: Model,
    dictionaries: Dictionaries,
    concept: Concept,
    features: Sequence[Feature],
    *,
    taus: Sequence[float] = TAUS,
    mus: Sequence[float] = MUS,
    limits: tuple[float, float, float] = (0.13, 0.8, 0.85),
    baseline: TrainConfig | None = None,
    relearn: TrainConfig | None = None,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Erased:
    """Search an edit on the tune questions and report every arm on the test questions; the model is not touched.

    ``limits``: most of the concept, least of other knowledge, least fluency. ``baseline`` and ``relearn`` train
    ``layers`` (None: all); None leaves gradient ascent, or relearning, out. Ctrl-C leaves the arms so far.
    """
    words = single_tokens(model, concept.words)
    counted = signs(model, [model.encode(text) for text in concept.texts], sorted(dictionaries), words)
    known, asked = scores(model, concept.tune, concept.neutral), len(concept.asked_again)

    def judge(tau: float, mu: float) -> Judged:
        with applied(model, make_edit(model, dictionaries, features, tau=tau, mu=mu, signs=counted)):
            return scores(model, concept.tune, concept.neutral).over(known)

    most, general, fluency = limits
    found = search(
        judge,
        taus,
        mus,
        most_concept=most,
        least_general=general,
        least_fluency=fluency,
        seed=seed,
        tick=lambda done, total: tick("settings", done, total),
    )
    if found.best is None:
        return Erased(concept.name, None, found, tuple(features), {}, {}, asked, found.complete)
    edit = make_edit(model, dictionaries, features, tau=found.best.tau, mu=found.best.mu, signs=counted)
    arms: dict[str, Scores] = {}
    curves: dict[str, tuple[tuple[int, float], ...]] = {}
    complete = found.complete
    try:
        controls = {
            "random features": random_control(edit, dictionaries, seed=seed),
            "shuffled signs": shuffled_control(edit, seed=seed),
        }
        made: dict[str, Model] = {"before": model, "edited": rewritten(model, edit)}
        arms |= {name: scores(each, concept.test, concept.neutral) for name, each in made.items()}
        for name, control in controls.items():
            with applied(model, control):
                arms[name] = scores(model, concept.test, concept.neutral)
        if baseline is not None:
            goal = max(float(arms["edited"].concept.mean()), 0.05)
            made["gradient ascent"] = gradient_ascent(
                model,
                concept.tune.concept + concept.test.concept,
                concept.tune.similar + concept.tune.general,
                baseline,
                until=lambda now: float(answers(now, concept.test.concept).known.mean()) <= goal,
                layers=layers,
            )
            arms["gradient ascent"] = scores(made["gradient ascent"], concept.test, concept.neutral)
        for name, each in made.items() if relearn else ():
            tick("models relearning", len(curves), len(made))
            curves[name] = _relearnt(each, concept, relearn, layers)
    except KeyboardInterrupt:
        complete = False
    return Erased(concept.name, edit, found, tuple(features), arms, curves, asked, complete)


def _relearnt(
    model: Model, concept: Concept, config: TrainConfig | None, layers: Sequence[int] | None
) -> tuple[tuple[int, float], ...]:
    def known(now: Model) -> float:
        return float(answers(now, concept.asked_again).known.mean())

    return relearning(model, concept.lessons, known, config or TrainConfig(), layers=layers)


def _plain(arm: Scores) -> dict[str, list[float]]:
    return {name: [float(x) for x in values] for name, values in vars(arm).items()}
