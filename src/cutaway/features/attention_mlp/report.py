"""Numbers of a survey as findings, controls in the same table."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from cutaway.features.attention_mlp.effects import compare
from cutaway.features.attention_mlp.surveys import NeuronFinding, shuffled_scores
from cutaway.stats import Interval, bootstrap, mean_interval, paired_difference
from cutaway.study import Finding

_WEAK = 0.9
_finding = partial(Finding.of, undefined="too few heads with both kinds of prompt")


def scores(next_token: Sequence[NeuronFinding], random: Sequence[NeuronFinding], seed: int = 0) -> list[Finding]:
    """Return rule scores of both sets of neurons, of shuffled rules, and their differences; clusters are neurons."""
    mine, whose = _scores(next_token)
    theirs, others = _scores(random)
    shuffled = shuffled_scores(next_token, seed)
    own = [head.score for each in next_token for head in each.heads]
    ids = [number for number, each in enumerate(next_token) for _ in each.heads]
    pairs = [(a, b, c) for a, b, c in zip(own, shuffled, ids, strict=True) if not math.isnan(a + b)]
    control = _finding("rule score, random neurons", _mean(theirs, others))
    heads, one_class = len(own), len(own) - len(mine)
    one_class_random = sum(math.isnan(head.score) for each in random for head in each.heads)
    paired = paired_difference([a for a, _, _ in pairs], [b for _, b, _ in pairs], clusters=[c for *_, c in pairs])
    explained = [each.explained for each in next_token if not math.isnan(each.explained)]
    other_heads = Finding("heads, random neurons", float(sum(len(each.heads) for each in random)), n=len(random))
    return [
        Finding("heads active in context", float(heads), n=len(next_token), control=other_heads),
        _finding("rule score", _mean(mine, whose), control=control),
        _finding("rule score, minus random neurons", _difference(mine, whose, theirs, others, seed)),
        _finding("rule score, shuffled rules", _mean([b for _, b, _ in pairs], [c for *_, c in pairs])),
        _finding("rule score, minus shuffled rules", paired if pairs else None),
        Finding(
            "heads of one class on other documents, not scored",
            float(one_class),
            n=heads,
            control=Finding("the same, random neurons", float(one_class_random), n=sum(len(e.heads) for e in random)),
        ),
        _finding("share of the pre-activation from the heads listed", _mean(explained, list(range(len(explained))))),
    ]


def distances(next_token: Sequence[NeuronFinding], random: Sequence[NeuronFinding], seed: int = 0) -> list[Finding]:
    """Return Kolmogorov-Smirnov distances of falls of P(token), active against inactive prompts, and their p."""
    table = {
        "heads found": [(h.drop_active, h.drop_inactive, i) for i, e in enumerate(next_token) for h in e.heads],
        "random heads": [(h.random_active, h.random_inactive, i) for i, e in enumerate(next_token) for h in e.heads],
        "random neurons": [(h.drop_active, h.drop_inactive, i) for i, e in enumerate(random) for h in e.heads],
    }
    items = []
    for name, rows in table.items():
        real = [row for row in rows if not math.isnan(row[0] + row[1])]
        label = f"KS distance of falls of P(token), {name}"
        if len({row[2] for row in real}) < 2:
            items.append(Finding(label, None, n=len(real), undefined="fewer than two neurons with both kinds"))
            continue
        found = compare([a for a, _, _ in real], [b for _, b, _ in real], [c for *_, c in real], seed=seed)
        items += [Finding(label, found.d, n=found.n), Finding(f"permutation p, {name}", found.p, n=found.clusters)]
    falls = [h.log_drop for e in next_token for h in e.heads if not math.isnan(h.log_drop)]
    value = bootstrap(falls, lambda x: float(np.median(x))) if falls else None
    return [*items, _finding("median fall of log P(token) where active", value)]


def correlation(found: Sequence[NeuronFinding]) -> Finding:
    """Return how first-order contributions agree with what taking the output away costs, over random pairs."""
    first = [x for each in found for x in each.first_order]
    lost = [x for each in found for x in each.lost]
    name = "correlation of first order with ablation"
    if len(first) < 3 or np.std(first) == 0 or np.std(lost) == 0:
        return Finding(name, None, n=len(first), undefined="too few pairs, or no variation")
    rows = np.column_stack([first, lost])
    clusters = [i for i, each in enumerate(found) for _ in each.first_order]

    def r(x: np.ndarray) -> float:
        return float(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) if x.std(0).all() else 0.0

    value = bootstrap(rows, r, clusters=clusters, method="percentile", n=500)
    caution = "" if value.value >= _WEAK else "; weak: read contributions as a ranking only"
    return _finding(name + caution, Interval(value.value, value.low, value.high, len(first), value.level))


def _scores(found: Sequence[NeuronFinding]) -> tuple[list[float], list[int]]:
    pairs = [(head.score, i) for i, each in enumerate(found) for head in each.heads if not math.isnan(head.score)]
    return [score for score, _ in pairs], [i for _, i in pairs]


def _mean(values: Sequence[float], clusters: Sequence[int]) -> Interval | None:
    return mean_interval(list(values), clusters=list(clusters)) if values else None


def _difference(
    a: Sequence[float], of_a: Sequence[int], b: Sequence[float], of_b: Sequence[int], seed: int
) -> Interval | None:
    """Bootstrap whole neurons of both sets."""
    if len(set(of_a)) < 2 or len(set(of_b)) < 2:
        return None
    sides = np.concatenate([np.zeros(len(a)), np.ones(len(b))])
    rows = np.column_stack([sides, [*a, *b]])
    clusters = [*(f"a{i}" for i in of_a), *(f"b{i}" for i in of_b)]

    def gap(x: np.ndarray) -> float:
        parts = [x[x[:, 0] == side, 1] for side in (0, 1)]
        # A draw without one of the sets says nothing of the difference; it counts as none.
        return float(parts[0].mean() - parts[1].mean()) if all(map(len, parts)) else 0.0

    return bootstrap(rows, gap, clusters=clusters, method="percentile", seed=seed)
