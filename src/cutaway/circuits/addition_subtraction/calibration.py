"""Calibration of the sub-task search on two-layer adders with hand-set weights."""

from collections.abc import Callable

from cutaway.circuits.arithmetic.planted_check import found_pairs, found_roles, planted_roles
from cutaway.planted.adder import adder
from cutaway.study import Rate

DIGITS = 3


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Recall and precision of (node, sub-task) pairs, split jobs found, tags on noise."""
    wanted = hits = found = split = couples = tags = tested = 0
    for trial in range(trials):
        report(trial, trials)
        planted = adder(DIGITS, layers=2, signed=True, seed=trial)
        truth, seen = planted.truth.roles, found_roles(planted_roles(planted, seed=trial))
        wanted, found = wanted + len(truth), found + len(seen)
        hits += sum(seen.get(node) == role for node, role in truth.items())
        halved = adder(DIGITS, split=True, signed=True, seed=trial)
        both = found_pairs(planted_roles(halved, seed=trial))
        split += sum(both.get(pair) == role for pair, role in halved.truth.pairs.items())
        couples += len(halved.truth.pairs)
        noise = planted_roles(adder(DIGITS, null=True, signed=True, seed=trial), layers_all=True, seed=trial)
        tags += sum(tag.strength != "weak" for tag in noise.tags)
        tested += noise.tested
    return (
        Rate("recall", hits, wanted, at_least=0.95, what="planted (node, sub-task) pairs that were found"),
        Rate("precision", hits, max(1, found), at_least=0.95, what="found pairs that were planted"),
        Rate("split jobs", split, couples, at_least=0.95, what="jobs of two heads that no single head passes"),
        Rate("tags on noise", tags, max(1, tested), at_most=0.01, what="tests on random weights that gave a tag"),
    )
