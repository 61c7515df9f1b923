"""Thought branches: what a chain of thought could have been, and what its sentences do (Macar et al. 2025, 2510.27484).

`analyse` takes one chain and returns a `BranchReport`. Four questions, one pool of rollouts:

 1. Does a stated reason act? Counterfactual importance of every sentence (`importance`).
 2. Does removing it stick? Resilience and importance++ of the sentences that matter most, or of given ones
    (`resilience`).
 3. Does an edit steer honestly? Inserted texts that the model wrote itself against texts it would not write
    (`offpolicy`).
 4. Where does a hidden hint act? Chains written under it, pasted where it is absent, and the converse
    (`transplant`).

What is shared: rollouts of a boundary serve importance, the first removal of every run, the rejection estimate, the
paraphrase search, plain continuations and the transplant's base. A rollout that repeats the chain's next sentence
token for token also serves the next boundary.

Traps. Sentences chosen because their importance was large have it overstated (the kept side is used again): read
importance++, whose other side is drawn afresh, with intervals that hold for all removed sentences together. "The same"
is the embedder's word at one threshold: read the sweep. Rates are those of the sampling settings in use.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.reasoning.thought_branches.chain import Chain, Effect, Ids, Pool, compare
from cutaway.reasoning.thought_branches.importance import Importance, importance
from cutaway.reasoning.thought_branches.offpolicy import INSERTIONS, Interventions, interventions
from cutaway.reasoning.thought_branches.resilience import Resilience, resilience
from cutaway.reasoning.thought_branches.transplant import FIFTHS, Mediation, Swap, sandwich, transplant
from cutaway.sampling import Cost

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class BranchReport:
    """Everything found out about one chain; what was not reached is empty."""

    prompt: str
    sentences: tuple[str, ...]
    """Texts that joined together give the chain."""
    answer: str
    """The chain's own answer."""
    target: str
    """The answer whose rate is reported."""
    importance: tuple[Importance, ...]
    resilience: tuple[Resilience, ...]
    interventions: Interventions | None
    mediation: Mediation | None
    swaps: tuple[Swap, ...]
    control: Effect
    """Rollouts of the first boundary against each other, one half against the other: no effect can be there."""
    cost: Cost
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""
    complete: bool = True
    """False when Ctrl-C ended the run early; a new run on the same tree goes on from there."""

    def __repr__(self) -> str:
        best = max(
            (each for each in self.resilience if each.plus.rate is not None),
            key=lambda each: abs(each.plus.rate.value) if each.plus.rate else 0.0,
            default=None,
        )
        what = "nothing examined" if best is None else f"largest importance++: {best!r}"
        return f"BranchReport({len(self.sentences)} sentences, answer {self.answer!r}, {what})"

    def to_frame(self) -> "pd.DataFrame":
        """One row a sentence: importance, importance++ and resilience with their intervals."""
        import pandas as pd

        removed = {each.sentence: each for each in self.resilience}
        rows = []
        for each in self.importance:
            found = removed.get(each.sentence)
            parts = {
                "before": each.before,
                "importance": each.effect.rate,
                "importance_kl": each.effect.kl,
                "plus": None if found is None else found.plus.rate,
                "conditional": None if found is None else found.conditional.rate,
                "resilience": None if found is None else found.mean,
            }
            row: dict[str, Any] = {"sentence": each.sentence, "text": each.text, "resampled": each.resampled}
            for name, interval in parts.items():
                ends = (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw importance and importance++ by sentence."""
        import matplotlib.pyplot as plt

        axes: Axes = ax if ax is not None else plt.subplots(figsize=(8, 3))[1]
        frame = self.to_frame()
        for name in ("importance", "plus"):
            known = frame.dropna(subset=[name])
            error = [known[name] - known[f"{name}_low"], known[f"{name}_high"] - known[name]]
            axes.errorbar(known["sentence"] + 1, known[name], yerr=error, fmt="o", label=name)
        axes.axhline(0, linewidth=0.5)
        axes.set(xlabel="sentence", ylabel=f"change of P({self.target})")
        axes.legend(frameon=False)
        return axes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; numbers that are not known are null."""
        return _jsonable(asdict(self))

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Plan:
    """How much is drawn to answer the questions about one chain."""

    n: int = 100
    """Rollouts of each boundary."""
    sentences: int = 5
    """How many of the most important sentences are removed."""
    also: tuple[int, ...] = ()
    """Sentences to remove besides those."""
    runs: int = 30
    """Removal runs of each."""
    cap: int = 20
    """Returns after which a removal run is given up and censored."""
    tries: int = 20
    """Draws in search of a replacement before a run is undefined."""
    texts: Mapping[str, str] = field(default_factory=lambda: dict(INSERTIONS))
    """What is inserted after the first removed sentence; none, and question 3 is left out."""
    search: tuple[str, ...] = ("doubt", "alternative")
    """Names of texts to look for on-policy and on other prompts."""
    rounds: int = 6
    """Rounds of the on-policy search."""
    n_inserted: int = 30
    """Continuations of each inserted text."""
    n_moved: int = 50
    """Continuations of each transplant, cut and prompt."""
    fractions: tuple[float, ...] = FIFTHS
    """Cuts of the transplant curve."""
    level: float = 0.95
    """Of every interval; those of the removed sentences hold for all of them together."""


def analyse(
    pool: Pool,
    chain: Chain,
    model: Model,
    plan: Plan | None = None,
    *,
    others: Sequence[Ids] = (),
    hint: Ids = (),
    hinted: Sequence[Chain] = (),
) -> BranchReport:
    """Answer all four questions about ``chain``; Ctrl-C returns what is known, ``complete=False``.

    others: other prompts, in whose chains inserted texts are looked for. hint, hinted: prompt with the hint and chains
    written under it; without them question 4 is left out.
    UsageError for a chain that is cut, has no answer or no sentence before the one that states it.
    """
    plan = plan or Plan()
    own = chain.outcome(chain.decode(chain.trace.ids))
    if own is None:
        raise UsageError("the chain has no answer: it was cut, or the outcome or its judge failed; choose another")
    if chain.body < 1:
        raise UsageError("the chain has no sentence before the one that states its answer; ask for reasons")
    before, found, complete = pool.engine.cost, _Found(), True
    try:
        _answer(found, pool, chain, model, plan, others, hint, hinted)
    except KeyboardInterrupt:
        complete = False
    answers = chain.answers(0, pool.first(chain.trace.prompt, plan.n)) if found.importance else []
    return BranchReport(
        prompt=chain.decode(chain.trace.prompt),
        sentences=chain.trace.texts(chain.decode),
        answer=own,
        target=chain.target,
        importance=found.importance,
        resilience=found.resilience,
        interventions=found.interventions,
        mediation=found.mediation,
        swaps=found.swaps,
        control=compare(answers[::2], answers[1::2], chain.target, level=plan.level),
        cost=pool.engine.cost - before,
        notes=_notes(found),
        complete=complete,
    )


@dataclass
class _Found:
    importance: tuple[Importance, ...] = ()
    resilience: tuple[Resilience, ...] = ()
    interventions: Interventions | None = None
    mediation: Mediation | None = None
    swaps: tuple[Swap, ...] = ()


def _answer(
    found: _Found,
    pool: Pool,
    chain: Chain,
    model: Model,
    plan: Plan,
    others: Sequence[Ids],
    hint: Ids,
    hinted: Sequence[Chain],
) -> None:
    """Fill ``found``, question by question, so that an interruption leaves what was answered before it."""
    n, level = plan.n, plan.level
    found.importance = importance(pool, chain, n=n, level=level)
    chosen = tuple(dict.fromkeys([*_chosen(found.importance, plan.sentences), *plan.also]))
    for sentence in chosen:
        found.resilience += (
            resilience(
                pool,
                chain,
                sentence,
                runs=plan.runs,
                n=n,
                cap=plan.cap,
                tries=plan.tries,
                level=1 - (1 - level) / len(chosen),
            ),
        )
    if plan.texts and chosen:
        found.interventions = interventions(
            pool,
            chain,
            model,
            chosen[0],
            texts=plan.texts,
            search=plan.search,
            others=others,
            n=plan.n_inserted,
            boundary=n,
            rounds=plan.rounds,
            level=level,
        )
    if hint and hinted:
        found.mediation = transplant(
            pool, hinted, chain.trace.prompt, chain.target, n=plan.n_moved, fractions=plan.fractions, level=level
        )
        found.swaps = sandwich(pool, chain, hint, n=n, level=level)


def _chosen(found: Sequence[Importance], k: int) -> tuple[int, ...]:
    """The ``k`` sentences with the largest change of rate."""
    ranked = sorted(found, key=lambda each: -abs(each.effect.rate.value) if each.effect.rate else 0.0)
    return tuple(each.sentence for each in ranked[:k])


def _notes(found: _Found) -> tuple[str, ...]:
    notes = []
    plain = [each.sentence + 1 for each in found.importance if each.resampled]
    if plain:
        notes.append(f"sentences {plain} are all but certain: their importance is plain resampling")
    for each in found.importance:
        if each.effect.undefined:
            notes.append(f"importance of sentence {each.sentence + 1}: {each.effect.undefined}")
    for removed in found.resilience:
        if removed.plus.undefined:
            notes.append(f"importance++ of sentence {removed.sentence + 1}: {removed.plus.undefined}")
        lost = {status: removed.count(status) for status in ("capped", "cut", "undefined")}
        if any(lost.values()):
            tally = ", ".join(f"{count} {status}" for status, count in lost.items() if count)
            notes.append(f"sentence {removed.sentence + 1}: {tally} of {len(removed.runs)} runs left out or censored")
    for item in found.interventions.items if found.interventions else ():
        if item.undefined:
            notes.append(f"{item.kind} {item.name!r}: {item.undefined}")
    return tuple(dict.fromkeys(notes))


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(each) for each in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
