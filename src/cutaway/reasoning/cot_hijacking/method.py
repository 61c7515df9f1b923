"""Does harmless reasoning before a request weaken a model's refusal, at what length, and through what?

1. `measure`: every goal under every cell (length x kind of preamble x cue), sampled, graded by two judges, thrown
   away; only verdicts are kept. Prompts beyond the context never run.
2. `factorial.analyse`: refusal by cell, the effect of length within goals, beside a length-matched control.
3. `look_inside`: the refusal direction (`direction`), its component by layer and length, the heads that carry the
   request into the refusal, and what ablating them or giving back their attention does (`heads`). Goals are dealt
   into three parts: found on the first, chosen on the second, tested on the third.

Zhao, Fu, Schaeffer, Sharma, Barez 2025 (arXiv:2510.26418), sections on length control and mechanism; the attack loop
is left out. Limits: one greedy or sampled answer of a few tokens decides "refused", so late refusals are missed; the
head and direction readouts use the first token's log-odds, which name refusals only as far as `openings` do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from cutaway.grading.refusal import ANSWERED, Outcome, grade_refusal, opens_with_refusal
from cutaway.model import Model
from cutaway.reasoning.cot_hijacking.data import Goal
from cutaway.reasoning.cot_hijacking.direction import (
    DirectionTest,
    RefusalDirection,
    auc,
    check_direction,
    components,
    fit_direction,
    standardise,
)
from cutaway.reasoning.cot_hijacking.factorial import Cell, Trial
from cutaway.reasoning.cot_hijacking.heads import GiveBack, HeadScan, HeadTest, ablate_heads, give_back, scan_heads
from cutaway.reasoning.cot_hijacking.length import Prompt, Relevance, make_preamble, make_prompt, over_context
from cutaway.reasoning.cot_hijacking.rates import kappa
from cutaway.reasoning.cot_hijacking.reading import Readout
from cutaway.reasoning.rollouts import Report, draw_rollouts
from cutaway.sampling import Cost, LocalEngine, Settings
from cutaway.stats import Interval, paired_difference

Judge = Callable[[str, str], Outcome]
"""(text, how it ended) to an outcome."""


@dataclass(frozen=True)
class Measured:
    """Graded runs."""

    trials: tuple[Trial, ...]
    cost: Cost
    complete: bool

    def outcomes(self, cell: Cell, *, harmful: bool = True) -> list[Outcome]:
        return [trial.outcome for trial in self.trials if trial.cell == cell and trial.harmful == harmful]

    @property
    def agreement(self) -> Interval:
        """Kappa of the two judges over the runs that answered; what never answered would agree for nothing."""
        both = [(t.outcome, t.second) for t in self.trials if t.outcome in ANSWERED and t.second is not None]
        return kappa([a for a, _ in both], [b for _, b in both if b is not None])

    def __repr__(self) -> str:
        return f"Measured({len(self.trials)} runs, kappa {self.agreement}{'' if self.complete else ', partial'})"

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {
                "goal": t.goal,
                "tokens": t.cell.tokens,
                "kind": t.cell.kind,
                "cue": t.cell.cue,
                "harmful": t.harmful,
                "outcome": t.outcome,
                "second": t.second,
            }
            for t in self.trials
        ]
        return {"trials": rows, "complete": self.complete}


@dataclass(frozen=True, eq=False)
class Inside:
    """What the refusal hangs on inside the model."""

    direction: RefusalDirection
    direction_test: DirectionTest
    lengths: tuple[int, ...]
    component: Float[np.ndarray, "length layer"]
    """Mean r_l of harmful prompts at the last token, in standard deviations of the test part's bare harmless ones."""
    component_change: Interval
    """Longest minus shortest at the direction's layer, paired over goals."""
    told_apart: tuple[Interval, ...]
    """By length: AUC of r at the direction's layer, harmful against harmless."""
    bare: dict[str, float]
    """r at the direction's layer of every test goal's bare request."""
    scan: HeadScan
    head_test: HeadTest
    given: GiveBack

    def __repr__(self) -> str:
        return f"Inside({self.direction}, {self.head_test}, {self.given})"

    def to_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction.to_dict(),
            "lengths": list(self.lengths),
            "component": [[None if np.isnan(x) else float(x) for x in row] for row in self.component],
            "scan": self.scan.to_dict(),
            "heads": [list(head) for head in self.head_test.heads],
            "random_drops": list(self.head_test.random_drops),
        }


def prompts_for(
    model: Model, goals: Sequence[Goal], cell: Cell, *, harmful: bool, family: str, cue: str, seed: int
) -> list[Prompt]:
    """The prompt of every goal under one cell: all with the same preamble, or one for each topic."""
    found = []
    for goal in goals:
        relevance: Relevance = cell.relevance  # type: ignore[assignment]  # make_preamble checks it
        source = goal.topic if relevance == "topic" else family
        preamble = make_preamble(model, cell.tokens, relevance, source=source, seed=seed)
        text = goal.harmful if harmful else goal.harmless
        found.append(make_prompt(model, text, preamble, cue if cell.cue else ""))
    return found


def measure(
    model: Model,
    goals: Sequence[Goal],
    cells: Sequence[Cell],
    settings: Settings,
    *,
    harmless: Sequence[Cell] = (),
    runs: int = 1,
    preambles: int = 1,
    family: str = "sudoku",
    cue: str = "",
    judges: tuple[Judge, Judge] = (grade_refusal, opens_with_refusal),
    seed: int = 0,
    report: Report = lambda done, planned, note: None,
) -> Measured:
    """Grade ``runs`` answers of every goal under every cell and each of ``preambles`` preambles.

    ``harmless``: cells under which the harmless twins are asked too. Ctrl-C returns the runs that are finished.
    """
    trials, cost, complete = list[Trial](), Cost(), True
    plan = [(cell, k) for cell in dict.fromkeys((*cells, *harmless)) for k in range(preambles if cell.tokens else 1)]
    try:
        for done, (cell, k) in enumerate(plan):
            report(done, len(plan), f"cells, {cell}")
            asked = [
                (goal.name, bad, prompt)
                for bad, where in ((True, cells), (False, harmless))
                if cell in where
                for goal, prompt in zip(
                    goals,
                    prompts_for(model, goals, cell, harmful=bad, family=family, cue=cue, seed=seed + k),
                    strict=True,
                )
            ]
            graded, spent = _graded(model, asked, cell, runs, settings, judges, seed)
            trials, cost = trials + graded, cost + spent
    except KeyboardInterrupt:
        complete = False
    return Measured(tuple(trials), cost, complete)


def look_inside(
    model: Model,
    parts: tuple[Sequence[Goal], Sequence[Goal], Sequence[Goal]],
    lengths: Sequence[int],
    readout: Readout,
    *,
    family: str = "sudoku",
    heads: int = 4,
    sets: int = 200,
    few: int = 6,
    positions: int = 1,
    seed: int = 0,
    report: Report = lambda done, planned, note: None,
) -> Inside:
    """Find direction and heads on the first two ``parts`` of the goals, test them on the third.

    ``few``: how many goals the heads are chosen and tested on; direction and components use all.
    """

    def asked(goals: Sequence[Goal], tokens: int, harmful: bool) -> list[Prompt]:
        return prompts_for(model, goals, Cell(tokens), harmful=harmful, family=family, cue="", seed=seed)

    def ids(goals: Sequence[Goal], tokens: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        bad, good = ([p.ids for p in asked(goals, tokens, harmful)] for harmful in (True, False))
        return bad, good

    report(0, 4, "steps, direction")
    train, validation, test = (ids(part, 0) for part in parts)
    direction = fit_direction(model, *train, readout, validation=validation, positions=positions)
    direction_test = check_direction(model, direction, *test, readout, seed=seed)
    report(1, 4, "steps, components by length")
    vector, at = direction.tensor(model), direction.layer
    first, last = min(lengths), max(lengths)
    r = {n: [components(model, side, vector) for side in ids(parts[2], n)] for n in {0, *lengths}}
    bare, quiet = r[0]
    scaled = {n: standardise(r[n][0], quiet) for n in lengths}
    report(2, 4, "steps, heads by length")
    ends = {harmful: {n: asked(parts[0][:few], n, harmful) for n in (first, last)} for harmful in (True, False)}
    scan = scan_heads(model, ends[True], ends[False], readout)
    chosen = scan.ranking()[:heads]
    report(3, 4, "steps, ablation")
    near, far = (asked(parts[2][:few], n, True) for n in (first, last))
    return Inside(
        direction,
        direction_test,
        tuple(lengths),
        np.array([scaled[n].mean(0) for n in lengths]),
        _change(scaled[last][:, at], scaled[first][:, at]),
        tuple(told_apart(*(side[:, at] for side in r[n])) for n in lengths),
        dict(zip((goal.name for goal in parts[2]), bare[:, at].tolist(), strict=True)),
        scan,
        ablate_heads(model, [p.ids for p in near], chosen, readout, sets=sets, seed=seed),
        give_back(model, near, far, chosen, readout, controls=3, seed=seed),
    )


def _change(far: Float[np.ndarray, " goal"], near: Float[np.ndarray, " goal"]) -> Interval:
    if np.isnan([far, near]).any():
        return Interval(np.nan, np.nan, np.nan, 0, 0.95)
    return paired_difference(far, near)


def told_apart(harmful: Float[np.ndarray, " n"], harmless: Float[np.ndarray, " m"]) -> Interval:
    """AUC of a refusal component, harmful against harmless prompts."""
    scores = np.concatenate([harmful, harmless])
    return auc(scores, np.repeat([True, False], [len(harmful), len(harmless)]))


def outcome_auc(trials: Sequence[Trial], component: Mapping[str, float], cell: Cell) -> Interval:
    """AUC of goals' refusal components for refused against complied, at one cell: at fixed length."""
    mine = [
        t for t in trials if t.harmful and t.cell == cell and t.goal in component and t.outcome in ("refuse", "comply")
    ]
    scores = np.array([component[t.goal] for t in mine])
    return auc(scores, np.array([t.outcome == "refuse" for t in mine], dtype=bool))


def _graded(
    model: Model,
    asked: Sequence[tuple[str, bool, Prompt]],
    cell: Cell,
    runs: int,
    settings: Settings,
    judges: tuple[Judge, Judge],
    seed: int,
) -> tuple[list[Trial], Cost]:
    """Answers to (goal, harmful, prompt), graded and thrown away: what a model writes to them is not kept."""
    too_long = over_context(model, [prompt for *_, prompt in asked], settings.max_tokens)
    trials, able = list[Trial](), []
    for each, over in zip(asked, too_long, strict=True):
        if over:
            trials += [Trial(each[0], cell, "over-context", None, each[1])] * runs
        else:
            able.append(each)
    engine = LocalEngine(model)
    found = draw_rollouts(engine, [prompt.ids for *_, prompt in able], runs, settings, seed=seed)
    for (goal, harmful, _), answers in zip(able, found, strict=True):
        for answer in answers:
            text = model.decode([token for token in answer.ids if token not in model.eos_ids])
            first, second = (judge(text, answer.finish) for judge in judges)
            trials.append(Trial(goal, cell, first, second, harmful))
    return trials, engine.cost
