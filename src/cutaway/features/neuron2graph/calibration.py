"""Planted rules whose patterns are known, and features that no pattern describes."""

from collections.abc import Callable

from cutaway.errors import UsageError
from cutaway.features.neuron2graph.method import fit
from cutaway.features.neuron2graph.snippets import listed, read
from cutaway.features.neuron2graph.steps import Settings
from cutaway.features.neuron2graph.survey import Surveyed, survey
from cutaway.features.unit import function
from cutaway.planted.rules import WORDS, Rule, RuleName, rule
from cutaway.study import Rate

SETTINGS = Settings(fillers=(0, 7, 12), start=())
EXACT = ("anywhere", "within")
SCORED: tuple[RuleName, ...] = ("anywhere", "within", "unless", "class", "noisy")


def planted(each: Rule, seed: int, rows: int = 250) -> Surveyed:
    """Fit a planted rule on random text and judge it on other random text."""
    unit = function(each.name, each.fn)
    build, other = (read([unit], [tuple(row) for row in each.texts(rows, seed=s)]) for s in (2 * seed, 2 * seed + 1))
    (found,), _ = survey(
        [unit], build, other, spell=each.spell, settings=SETTINGS, propose=listed(range(len(WORDS))), seed=seed
    )
    return found


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Patterns found, fire predicted on other text, and silence where there is no pattern."""
    exact = predicted = lookup = silent = wolves = tokens = 0
    for trial in range(trials):
        report(trial, trials)
        for name in SCORED:
            each = rule(name, trial)
            found = planted(each, trial)
            assert found.fitted is not None
            exact += name in EXACT and found.fitted.graph.paths == each.truth.paths
            predicted += found.other["graph"].f1 >= 0.95
            lookup += name == "within" and found.other["token look-up, largest"].precision >= 0.5
        noise = planted(rule("random", trial), trial)
        wolves += noise.other["graph"].predicted
        tokens += noise.other["graph"].tokens
        silent += _refused(rule("silent"))
    return (
        Rate("patterns exact", exact, 2 * trials, at_least=1.0, what="rules 1 and 2 with exactly the planted paths"),
        Rate(
            "fire predicted",
            predicted,
            len(SCORED) * trials,
            at_least=0.95,
            what="planted rules with F1 >= .95 on other random text",
        ),
        Rate("look-up is enough", lookup, trials, at_most=0.0, what="token look-ups with precision >= .5 on rule 2"),
        Rate("fire predicted from noise", wolves, tokens, at_most=0.002, what="tokens of other text, coin feature"),
        Rate("silence seen", silent, trials, at_least=1.0, what="features never above 0 that are said to be so"),
    )


def _refused(each: Rule) -> bool:
    unit = function(each.name, each.fn)
    found = read([unit], [tuple(row) for row in each.texts(20)])
    try:
        fit(unit, found.snippets(0, 20), largest=found.largest(0), spell=each.spell, settings=SETTINGS)
    except UsageError:
        return True
    return False
