"""How small models add and subtract: errors by class, useful nodes, sub-tasks, and a written algorithm checked.

1. `class_errors`: errors on uniform questions and on every complexity class, with exact limits.
2. `explain`: useful positions and nodes by mean ablation, layer by layer means; sub-tasks of heads and pairs of
   heads by interchange; the last MLPs' answer digits; geometry of the three-way heads.
3. `algorithm`: the published account as clauses; `check` says which hold, do not, or cannot be tested.

Published in Quirke, Neo, Barez 2024. Traps of the published code that are avoided: means of layer 0 used in every
layer; one failed question making a node useful; one fixed question for a test; three-way tests passed by any change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cutaway.circuits.arithmetic import Format, Scores, join, per_class, score, uniform
from cutaway.circuits.arithmetic.ablate import FEWEST, AblationMap, ablate
from cutaway.circuits.arithmetic.clauses import Clause, Fact, Verdict, check
from cutaway.circuits.arithmetic.geometry import Geometry, tricase
from cutaway.circuits.arithmetic.interchange import NAMES
from cutaway.circuits.arithmetic.nodes import all_nodes, residuals
from cutaway.circuits.arithmetic.questions import KINDS, Kind
from cutaway.circuits.arithmetic.recipes import Operation
from cutaway.circuits.arithmetic.roles import Roles, attended, find_roles, mean_attention, tasks
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.stats import Interval, clopper_pearson

Report = Callable[[int, int, str], None]
OF: dict[Operation, tuple[Kind, ...]] = {"add": ("ADD",), "sub": ("SUB", "NEG"), "mix": KINDS}


def kinds_of(operation: Operation) -> tuple[Kind, ...]:
    """Kinds of question an operation has."""
    return OF[operation]


def class_errors(
    model: Model, form: Format, operation: Operation, *, uniform_n: int, per_class_n: int, seed: int
) -> dict[str, Interval]:
    """Share of wrong answers: ``uniform +``, ``uniform -`` and every class that exists; exact limits."""
    if per_class_n < FEWEST:
        raise UsageError(f"per_class={per_class_n}: a class needs at least {FEWEST} questions")
    out: dict[str, Interval] = {}
    for name, minus in (("uniform +", False), ("uniform -", True)):
        if operation in ("mix", "sub" if minus else "add"):
            out[name] = _errors(score(model, uniform(form, uniform_n, seed, minus=minus)))
    for name, questions in per_class(form, per_class_n, seed + 1, operations=operation).items():
        out[name] = _errors(score(model, questions))
    return out


def nines(errors: int, questions: int) -> int:
    """Published shorthand for accuracy: six nines is at most one error in a million, five at most ten.

    >>> nines(1, 1_000_000), nines(7, 1_000_000), nines(0, 10_000), nines(3, 100)
    (6, 5, 4, 1)
    """
    best = int(np.floor(np.log10(questions)))
    return next((k for k in range(best, 0, -1) if errors * 10**k <= questions), 0)


@dataclass(frozen=True)
class Explanation:
    """What a model's nodes do."""

    positions: AblationMap
    nodes: AblationMap
    roles: Roles
    mlps: Roles
    attends: dict[str, tuple[str, ...]]
    """Positions that each useful head attends to most."""
    geometry: tuple[Geometry, ...]
    verdicts: tuple[Verdict, ...]

    def __repr__(self) -> str:
        held = sum(v.outcome == "valid" for v in self.verdicts)
        tested = sum(v.outcome != "not testable" for v in self.verdicts)
        return f"Explanation({held} of {tested} clauses hold, heads with a purpose: {self.roles.coverage})"


def explain(
    model: Model,
    form: Format,
    operation: Operation,
    *,
    per_class_n: int = 60,
    pairs: int = 100,
    seed: int = 0,
    report: Report = lambda done, total, note: None,
) -> Explanation:
    """Map the useful nodes, search their sub-tasks and check the algorithm."""
    if per_class_n < FEWEST:
        raise UsageError(f"per_class={per_class_n}: a class needs at least {FEWEST} questions")
    varied, reference = (
        join(list(per_class(form, per_class_n, seed + at, operations=operation).values())) for at in (1, 500)
    )
    positions = ablate(model, varied, residuals(form), reference)
    nodes = ablate(model, varied, all_nodes(model, form), reference)
    useful, attention = nodes.useful(), mean_attention(model, varied)
    kinds = kinds_of(operation)
    roles = find_roles(
        model, form, useful, tasks(form, kinds), pairs=pairs, seed=seed, attention=attention, report=report
    )
    mlps = find_roles(model, form, useful, tasks(form, kinds, mlps=True), pairs=pairs, seed=seed + 1, report=report)
    return Explanation(
        positions,
        nodes,
        roles,
        mlps,
        {str(node): attended(attention, node, form) for node in useful if node.is_head},
        _geometry(model, form, roles, seed),
        check(algorithm(form), facts(roles), {f"{task.name}{task.column}" for task in roles.searched}),
    )


def _geometry(model: Model, form: Format, roles: Roles, seed: int) -> tuple[Geometry, ...]:
    """Of every head found to tell an addition's three cases."""
    places = dict.fromkeys(
        (tag.nodes[0], tag.task.column) for tag in roles.tags if tag.task.name == "ST" and len(tag.nodes) == 1
    )
    return tuple(tricase(model, form, node, column, seed=seed) for node, column in places)


def facts(roles: Roles) -> tuple[Fact, ...]:
    """Tags as facts: ``SA2`` is the base of column 2. A job shared by two heads is a fact of the first."""
    out = []
    for tag in roles.tags:
        node = tag.nodes[0]
        if tag.strength == "weak" or node.position is None or node.layer is None:
            continue
        out.append(Fact(f"{tag.task.name}{tag.task.column}", node.position, node.layer, node.head, tag.task.digit))
    return tuple(out)


def algorithm(form: Format) -> tuple[Clause, ...]:
    """The published account, for all three kinds of question; a kind not searched for is not testable."""
    out = []
    before = form.predicts(form.digits)
    for kind in KINDS:
        base, _, three = NAMES[kind]
        for n in range(form.digits):
            out.append(
                Clause(f"{base}{n} is known where A{n} is predicted", f"{base}{n}", digit=n, last=form.predicts(n))
            )
        for n in range(2, form.digits - (kind != "ADD")):
            out.append(Clause(f"{three}{n} is told before the answer's digits", f"{three}{n}", last=before))
        for n in range(form.digits):
            says = f"{base}{n} is not computed before ="
            out.append(Clause(says, f"{base}{n}", last=form.equals - 1, least=0, most=0))
    return tuple(out)


def _errors(scores: Scores) -> Interval:
    return clopper_pearson(int((~scores.right).sum()), len(scores.right))
