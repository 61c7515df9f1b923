"""What an ablation map costs: every node as a batch, against one forward a question or a node.

    python benchmarks/arithmetic.py [--quick] [--out FILE.json]

The baselines are timed on a sample of nodes and scaled to the whole map. Both give the same numbers.
"""

import time

import numpy as np
import torch
from timing import claim, options, report

from cutaway.circuits.arithmetic import Format, Recipe, build, join, per_class, score, uniform
from cutaway.circuits.arithmetic.ablate import ablate
from cutaway.circuits.arithmetic.nodes import all_nodes, record, whole_heads
from cutaway.model import Replace


def seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def table(model, questions, nodes, reference) -> None:
    found = ablate(model, questions, nodes, reference)
    for name in ("S0", "S1", "S2"):
        found.class_rise(name)


def edit(means, node):
    site = f"mlp_out.{node.layer}" if node.head is None else f"z.{node.layer}.{node.head}"
    return Replace(site, means.value(node)[0], node.position)


def by_question(model, questions, means, nodes) -> None:
    """The published way: every node on every question by itself."""
    for node in nodes:
        for row in range(len(questions)):
            with model.edited(edit(means, node)):
                score(model, questions[row : row + 1])


def by_node(model, questions, means, nodes) -> None:
    """One whole forward a node, answers compared question by question."""
    for node in nodes:
        with model.edited(edit(means, node)):
            found = score(model, questions)
        for row in range(len(questions)):
            _ = any(int(a) != int(b) for a, b in zip(found.predicted[row], questions.answer_tokens[row], strict=True))


@torch.no_grad()
def main() -> None:
    given = options(__doc__)
    repeats = 1 if given.quick else 3
    rng = np.random.default_rng(0)
    claims = []
    form = Format(5)
    model = build(Recipe("tiny", 5, signed=False, d_model=96), "cpu")
    varied = join(list(per_class(form, 334, 0).values()))[:2000]
    reference = uniform(form, 500, 9)
    nodes = (*all_nodes(model, form), *whole_heads(model))
    means = record(model, reference).mean()
    sample = [nodes[i] for i in rng.choice(len(nodes), 6, replace=False)]
    ours, single = [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: table(model, varied, nodes, reference)))
        slow = seconds(lambda: by_question(model, varied[:30], means, sample))
        single.append(slow / (30 * len(sample)) * len(varied) * len(nodes))
    claims.append(claim("one layer, 71 nodes x 2,000 questions x classes", "record", ours, unit="s"))
    ratios = [b / a for a, b in zip(ours, single, strict=True)]
    claims.append(claim("one layer, whole map", "one forward a question and node", ratios, bar=20, at_least=True))

    form = Format(6, signed=True)
    model = build(Recipe("mixed", 6, layers=3, heads=4, d_model=128), "cpu")
    varied, reference = uniform(form, 500, 1, minus=0.5), uniform(form, 500, 2, minus=0.5)
    nodes, means = all_nodes(model, form, range(22)), record(model, reference).mean()
    sample = [nodes[i] for i in rng.choice(len(nodes), 12, replace=False)]
    ours, whole, single = [], [], []
    for _ in range(repeats):
        ours.append(seconds(lambda: ablate(model, varied, nodes, reference)))
        whole.append(seconds(lambda: by_node(model, varied, means, sample)) / len(sample) * len(nodes))
        slow = seconds(lambda: by_question(model, varied[:20], means, sample))
        single.append(slow / (20 * len(sample)) * len(varied) * len(nodes))
    claims.append(claim("22 positions x 3 layers x 5 nodes x 500 questions", "60 s", ours, bar=60, unit="s"))
    pairs = [[b / a for a, b in zip(ours, other, strict=True)] for other in (whole, single)]
    against = ("one forward a node, loop over questions", "one forward a question and node")
    for baseline, found in zip(against, pairs, strict=True):
        claims.append(claim("three layers, whole map", baseline, found, bar=10, at_least=True))
    report(given, claims, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
