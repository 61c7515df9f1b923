"""Which head does which sub-task: found by interchange, with two controls and corrected p-values beside each tag.

1. Candidates: useful nodes (see `ablate`) that have seen both digits of the column, break an answer token the task
   is about, and, in the first layer, attend to those digits.
2. Every candidate is patched on sampled pairs (`interchange`). It has the task when the exact predicted answer
   comes at least `NEED` of the time and both controls are beaten.
3. Controls: what another pair's store would predict (shuffled; paired test), and another useful node patched on the
   same pairs (random node; Fisher's test). p-values are Holm-corrected over all tests made.
4. Heads that fail alone are tried in pairs, then threes, of one layer and position: a job may be shared. A three
   in a model of three heads is the layer's whole attention there: true, and less specific.
5. A three-way pass makes the two-way tag of the same column and digit redundant; it is dropped.

Strength: ``strong`` passes against another background, ``shared`` only where the questions differ in this column
alone (the node carries more), ``weak`` changes the right tokens but not to the predicted values.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from cutaway.circuits.arithmetic.format import Format
from cutaway.circuits.arithmetic.interchange import NAMES, WHOLE, Background, Patched, Task, draw_pairs, patch
from cutaway.circuits.arithmetic.nodes import Group, Node, as_batch, rows
from cutaway.circuits.arithmetic.questions import Kind, Questions
from cutaway.model import Model
from cutaway.stats import Interval, clopper_pearson, mcnemar

if TYPE_CHECKING:
    import pandas as pd

NEED = 0.95
"""Share of exact matches that a tag needs."""
ALPHA = 0.05
Strength = Literal["strong", "shared", "weak"]
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Tag:
    """One sub-task found at one node, or at several that share it."""

    nodes: Group
    task: Task
    strength: Strength
    match: Interval
    """Share of pairs with exactly the predicted answer."""
    shuffled: float
    """Share that matches another pair's prediction."""
    random: float
    """Share that matches when another useful node is patched; nan when there is none."""
    p_shuffled: float
    """Holm-corrected."""
    p_random: float

    def __str__(self) -> str:
        place = "+".join(map(str, self.nodes))
        return (
            f"{place} {self.task} {self.strength} {self.match} (shuffled {self.shuffled:.2f}, other {self.random:.2f})"
        )


@dataclass(frozen=True)
class Roles:
    """Every tag found, what was tested, and which useful heads have a purpose."""

    tags: tuple[Tag, ...]
    useful: tuple[Node, ...]
    tested: int
    """Tests made; the Holm correction is over them."""
    pairs: int
    searched: tuple[Task, ...]

    def __repr__(self) -> str:
        return f"Roles({len(self.tags)} tags, {self.coverage} of useful heads have a purpose)"

    @property
    def purposeful(self) -> tuple[Node, ...]:
        """Useful heads with a strong or shared tag, alone or in a pair."""
        tagged = {node for tag in self.tags if tag.strength != "weak" for node in tag.nodes}
        return tuple(node for node in self.useful if node.is_head and node in tagged)

    @property
    def coverage(self) -> Interval:
        """Useful heads with a purpose, as a share."""
        heads = sum(node.is_head for node in self.useful)
        return clopper_pearson(len(self.purposeful), heads)

    def of(self, node: Node) -> tuple[Tag, ...]:
        """Tags of one node."""
        return tuple(tag for tag in self.tags if node in tag.nodes)

    def to_frame(self) -> "pd.DataFrame":
        """One row a tag."""
        import pandas as pd

        return pd.DataFrame([_row(tag) for tag in self.tags])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "tags": [_row(tag) for tag in self.tags],
            "useful": [str(node) for node in self.useful],
            "tested": self.tested,
            "pairs": self.pairs,
        }


def _row(tag: Tag) -> dict[str, Any]:
    return {
        "nodes": "+".join(map(str, tag.nodes)),
        "task": str(tag.task),
        "strength": tag.strength,
        "match": tag.match.value,
        "match_low": tag.match.low,
        "match_high": tag.match.high,
        "shuffled": tag.shuffled,
        "random": None if np.isnan(tag.random) else tag.random,
        "p_shuffled": tag.p_shuffled,
        "p_random": None if np.isnan(tag.p_random) else tag.p_random,
    }


def tasks(form: Format, kinds: Sequence[Kind] = ("ADD",), *, depth: int = 3, mlps: bool = False) -> tuple[Task, ...]:
    """The sub-tasks to look for: base of each column for its own digit, cases of the columns up to ``depth`` below
    it, and cases for all digits at once (computed before the answer starts).
    """
    out = []
    for kind in kinds:
        base, two, three = NAMES[kind]
        top = form.digits - (kind != "ADD")
        for j in range(form.digits):
            out.append(Task(WHOLE[kind] if mlps else base, j, j))
            if mlps or j >= top:
                continue
            names = (two, three) if j > 0 else (two,)
            last = min(j + depth, form.digits - (kind != "ADD"))
            out += [Task(name, j, i) for i in range(j + 1, last + 1) for name in names]
            out += [Task(name, j, None) for name in names if j + 1 < form.digits]
    return tuple(out)


@dataclass(frozen=True)
class _Test:
    group: Group
    task: Task
    background: Background
    hits: np.ndarray
    shuffled: np.ndarray
    touched: float
    random: np.ndarray | None
    p: tuple[float, float]


def find_roles(
    model: Model,
    form: Format,
    useful: Sequence[Node],
    searched: Sequence[Task],
    *,
    pairs: int = 100,
    together: int = 3,
    seed: int = 0,
    attention: Float[np.ndarray, "layer head pos key"] | None = None,
    report: Report = lambda done, total, note: None,
) -> Roles:
    """Search the tags of the useful nodes.

    ``together`` is the most heads that may share a job; ``attention`` (see `mean_attention`) spares hopeless
    first-layer tests.
    """
    tests: list[_Test] = []
    for at, task in enumerate(searched):
        report(at, len(searched), str(task))
        own = [(node,) for node in useful if _possible(node, task, form, attention)]
        tests += _run(model, form, task, own, useful, pairs, seed + at)
        # A part of a job is worth a test only where it moves the right tokens at least sometimes.
        alone = [test for test in tests if test.task == task]
        left = {t.group[0] for t in alone if t.touched > 0.1 and t.group[0].is_head}
        left -= {t.group[0] for t in alone if _passes(t)}
        solved: list[Group] = []
        for size in range(2, together + 1):
            groups = [group for group in _groups(left, size) if not any(set(less) <= set(group) for less in solved)]
            found = _run(model, form, task, groups, useful, pairs, seed + at)
            solved += [test.group for test in found if _passes(test)]
            tests += found
    return Roles(_tags(tests), tuple(useful), len(tests), pairs, tuple(searched))


def _groups(nodes: Iterable[Node], size: int) -> list[Group]:
    """Sets of nodes of one layer and position."""
    listed = sorted(nodes, key=lambda node: node.order)
    return [group for group in combinations(listed, size) if len({(n.position, n.layer) for n in group}) == 1]


def _possible(node: Node, task: Task, form: Format, attention: np.ndarray | None) -> bool:
    if node.layer is None or node.position is None or node.is_head == (task.variable == "answer"):
        return False
    seen = (form.first(task.column), form.second(task.column))
    if task.digit is None:
        if not seen[1] <= node.position <= form.predicts(form.digits):
            return False
    elif node.position != form.predicts(task.digit):
        return False
    if attention is None or node.layer > 0 or node.head is None:
        return True
    return bool(attention[0, node.head, node.position, list(seen)].sum() >= 0.02)


def _run(
    model: Model,
    form: Format,
    task: Task,
    groups: Sequence[Group],
    useful: Sequence[Node],
    n: int,
    seed: int,
) -> list[_Test]:
    if not groups:
        return []
    rng = np.random.default_rng(seed)
    heads = [node for node in useful if node.is_head == groups[0][0].is_head]
    # The random node is another one than those on trial, or, failing that, at another position.
    others = [node for node in heads if all(node.position != group[0].position for group in groups)]
    control: list[Group] = [(others[rng.integers(len(others))],)] if others else []
    found = []
    for background in ("other", "same"):
        got = patch(model, draw_pairs(form, task, n, seed, background), [*groups, *control])
        found += [_test(group, task, background, got, i, bool(control)) for i, group in enumerate(groups)]
    return found


def _test(group: Group, task: Task, background: Any, got: Patched, place: int, control: bool) -> _Test:
    hits, shuffled = got.matches[place], got.shuffled[place]
    first, second = int((hits & ~shuffled).sum()), int((shuffled & ~hits).sum())
    against = mcnemar(first, second) if first > second else 1.0
    other = got.matches[-1] if control else None
    if other is None:
        beside = float("nan")
    else:
        table = [[hits.sum(), (~hits).sum()], [other.sum(), (~other).sum()]]
        beside = float(stats.fisher_exact(table, alternative="greater").pvalue)
    touched = float(got.touched[place].mean())
    return _Test(group, task, background, hits, shuffled, touched, other, (against, beside))


def _passes(test: _Test) -> bool:
    return bool(test.hits.mean() >= NEED)


def _tags(tests: Sequence[_Test]) -> tuple[Tag, ...]:
    corrected = [holm([test.p[i] for test in tests]) for i in (0, 1)]
    found: dict[tuple[Group, Task], Tag] = {}
    for i, test in enumerate(tests):
        beats = corrected[0][i] < ALPHA and not corrected[1][i] >= ALPHA
        strength: Strength | None = None
        if _passes(test) and beats:
            strength = "strong" if test.background == "other" else "shared"
        elif test.background == "same" and test.touched >= NEED:
            strength = "weak"
        if strength is None or (test.group, test.task) in found:
            continue
        found[test.group, test.task] = Tag(
            test.group,
            test.task,
            strength,
            clopper_pearson(int(test.hits.sum()), len(test.hits)),
            float(test.shuffled.mean()),
            float("nan") if test.random is None else float(test.random.mean()),
            float(corrected[0][i]),
            float(corrected[1][i]),
        )
    return _without_redundant(found)


def _without_redundant(found: dict[tuple[Group, Task], Tag]) -> tuple[Tag, ...]:
    """Drop a two-way tag beside a three-way one, and a pair's tag where one of its heads has it alone."""
    kept = []
    order = ("weak", "shared", "strong")
    for (group, task), tag in found.items():
        three = NAMES[task.kind][2]
        finer = found.get((group, replace(task, name=three))) if task.variable == "two" else None
        if finer is not None and order.index(finer.strength) >= order.index(tag.strength):
            continue
        if len(group) > 1 and any(((node,), task) in found and tag.strength == "weak" for node in group):
            continue
        kept.append(tag)
    return tuple(sorted(kept, key=lambda tag: (tag.nodes[0].order, str(tag.task))))


def holm(p: Sequence[float]) -> Float[np.ndarray, " test"]:
    """Holm's step-down adjusted p-values, in the order given; nan stays nan and is not counted.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    out = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    scaled = values[order] * (len(order) - np.arange(len(order)))
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


def mean_attention(model: Model, questions: Questions) -> Float[np.ndarray, "layer head pos key"]:
    """Mean attention of every head from every position, over a set of questions."""
    found = model.capture(as_batch(rows(model, questions)), "pattern.*", special=True)
    return np.stack([found[f"pattern.{layer}"].mean(0).detach().cpu().numpy() for layer in range(model.n_layers)])


def attended(attention: Float[np.ndarray, "layer head pos key"], node: Node, form: Format) -> tuple[str, ...]:
    """The four positions a head attends to most, with percentages of 1 or more: ``D3=52``."""
    shares = attention[node.layer, node.head, node.position]
    top = np.argsort(-shares, kind="stable")[:4]
    return tuple(f"{form.name(int(key))}={100 * shares[key]:.0f}" for key in top if shares[key] >= 0.01)
