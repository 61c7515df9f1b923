"""Calibration on adders with hand-set weights: what is there is found exactly, what is not there is not."""

from collections.abc import Callable

from cutaway.circuits.addition_transformers.method import early_pattern, judge, question_suite
from cutaway.circuits.arithmetic import Format, join, per_class, score
from cutaway.circuits.arithmetic.ablate import ablate
from cutaway.circuits.arithmetic.nodes import residuals
from cutaway.circuits.arithmetic.planted_check import found_roles, planted_roles
from cutaway.planted.adder import adder
from cutaway.study import Rate

DIGITS = 5


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Recovered roles, the claim's verdict on its own model and on rivals', and tags where nothing is."""
    wanted = hits = extra = accepted = rejected = early = tags = tested = 0
    for trial in range(trials):
        report(trial, trials)
        planted = adder(DIGITS, seed=trial)
        truth, found = planted.truth.roles, found_roles(planted_roles(planted, seed=trial))
        wanted += len(truth)
        hits += sum(found.get(node) == role for node, role in truth.items())
        extra += sum(truth.get(node) != role for node, role in found.items())
        form = Format(DIGITS)
        suite = question_suite(form, 300, trial)
        accepted += judge(score(planted.model, suite)).accepted
        rejected += not judge(score(adder(DIGITS, columns=(2, 4)[trial % 2], seed=trial).model, suite)).accepted
        varied, reference = (join(list(per_class(form, 40, trial + at).values())) for at in (1, 50))
        early += bool(early_pattern(ablate(planted.model, varied, residuals(form), reference)).all())
        nothing = planted_roles(adder(DIGITS, null=True, seed=trial), layers_all=True, seed=trial)
        tags += sum(tag.strength != "weak" for tag in nothing.tags)
        tested += nothing.tested
    return (
        Rate("roles recovered", hits, wanted, at_least=1.0, what="planted (node, sub-task) pairs that were found"),
        Rate("roles invented", extra, max(1, hits + extra), at_most=0.0, what="found pairs that were not planted"),
        Rate(
            "claim accepted", accepted, trials, at_least=1.0, what="planted models of the claim on which it is accepted"
        ),
        Rate("rivals rejected", rejected, trials, at_least=1.0, what="models that look one or three columns down"),
        Rate("one position early", early, trials, at_least=1.0, what="planted models whose digits all are"),
        Rate("tags on noise", tags, max(1, tested), at_most=0.01, what="tests on random weights that gave a tag"),
    )
