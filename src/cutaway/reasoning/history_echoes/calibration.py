"""What the methods measure where the answer is known: chains, items, angles, and a planted model of answer style."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cutaway.reasoning.history_echoes.data import Item
from cutaway.reasoning.history_echoes.dialogue import Chat
from cutaway.reasoning.history_echoes.forced import Arm, Contrast, Effect, ForcedResult, Target, effect, run_forced
from cutaway.reasoning.history_echoes.geometry import measure_geometry, rotation
from cutaway.reasoning.history_echoes.markov import Stickiness, measure_stickiness
from cutaway.reasoning.history_echoes.phenomena import Phenomenon
from cutaway.sampling.types import Settings
from cutaway.study import Calibration, Finding, Rate

if TYPE_CHECKING:
    from cutaway.planted.echo import Echo, SimulatedItems

DIALOGUES, TURNS = 100, 19
TRUE_TRACE = 1.4
CARRY = 0.298
"""Log-odds that give a risk difference of 0.1 where items' log-odds have SD 1.5."""
STYLE = Phenomenon(
    "style",
    ask=lambda item: item.question,
    plus=lambda item: "bright",
    minus=lambda item: "plain",
    present=lambda text, item: text == "bright",
)
"""The behaviour of the planted model: which of two styles an answer has."""


def calibrate(
    study: str, trials: int, report: Callable[[int, int, str], None] = lambda done, planned, note: None
) -> Calibration:
    """Every rate of the study; ``trials`` simulated data sets each, and a planted model asked 20 times as often."""
    started = time.monotonic()
    rates: list[Rate] = []
    parts = (chain_rates, item_rates, angle_rates, echo_rates)
    for done, part in enumerate(parts):
        report(done, len(parts), part.__name__.replace("_", " "))
        rates += part(trials)
    return Calibration(study, tuple(rates), time.monotonic() - started, {"trials": trials})


def chain_rates(trials: int) -> tuple[Rate, ...]:
    """Chains with P(-|-) = 0.6 and P(+|+) = 0.8: is Tr right, and does its interval cover?"""
    from cutaway.planted.echo import simulate_chain

    found = [
        measure_stickiness(simulate_chain(0.6, 0.8, DIALOGUES, TURNS, seed=seed), seed=seed).trace
        for seed in range(trials)
    ]
    mean = float(np.mean([each.value for each in found]))
    return (
        Rate(
            "Tr unbiased", int(abs(mean - TRUE_TRACE) <= 0.01), 1, at_least=1.0, what=f"mean Tr {mean:.4f}, truth 1.4"
        ),
        Rate(
            "Tr coverage",
            sum(_covers(each, TRUE_TRACE) for each in found),
            trials,
            at_least=0.92,
            at_most=0.98,
            what="chains whose true Tr lies inside the 95% dialogue-bootstrap interval",
        ),
    )


def item_rates(trials: int) -> tuple[Rate, ...]:
    """Items of correlated difficulty: Tr is fooled and says so; forced histories are not fooled and have power."""
    from cutaway.planted.echo import simulate_items

    sticky = explained = excess = false = found = covered = 0
    for seed in range(trials):
        null = simulate_items(DIALOGUES, TURNS, correlation=0.9, seed=seed)
        naive = naive_reading(null, seed)
        sticky += _above(naive.trace, 1.0)
        explained += (naive.permuted_p or 0.0) > 0.025
        excess += not _covers(naive.excess, 0.0)
        false += not _covers(forced_effect(null).difference, 0.0)
        real = simulate_items(DIALOGUES, TURNS, correlation=0.9, carry=CARRY, seed=seed)
        measured = forced_effect(real).difference
        found += _above(measured, 0.0)
        covered += _covers(measured, real.risk_difference)
    return (
        Rate(
            "naive Tr above 1 without carry-over", sticky, trials, at_least=0.95, what="why Tr is never called causal"
        ),
        Rate("explained by difficulty", explained, trials, at_least=0.9, what="of these, Tr within the permuted range"),
        Rate(
            "excess over history-free, null",
            excess,
            trials,
            at_most=0.07,
            what="excess of Tr whose 95% interval misses 0",
        ),
        Rate("forced, false positives", false, trials, at_most=0.07, what="no carry-over, yet the interval misses 0"),
        Rate("forced, power at 0.1", found, trials, at_least=0.95, what="true difference 0.1 found, 1,900 pairs"),
        Rate("forced, coverage at 0.1", covered, trials, at_least=0.92, what="true difference inside the interval"),
    )


def angle_rates(trials: int) -> tuple[Rate, ...]:
    """Planted angles are found, and shuffled labels have uniform p-values."""
    from cutaway.planted.echo import simulate_states

    close = turned = false = blind = 0
    for seed in range(trials):
        angle = 10.0 + 70.0 * seed / max(trials - 1, 1)
        planted = simulate_states(angle, 100, 20, seed=seed)
        measured = measure_geometry(
            planted.states, planted.labels, planted.dialogue, planted.turn, permutations=1, seed=seed
        )
        close += measured.theta.value is not None and abs(measured.theta.value - angle) <= 1
        turned += abs(_planted_rotation(angle, seed) - angle) <= 0.1
        null = simulate_states(0.0, 40, 10, seed=seed)
        quiet = measure_geometry(null.states, null.labels, null.dialogue, null.turn, permutations=99, seed=seed)
        false += (quiet.p or 1.0) <= 0.05
        blind += _covers(quiet.auc, 0.5)
    return (
        Rate("theta within 1 degree", close, trials, at_least=0.95, what="angles of 10 to 80 degrees, 2,000 states"),
        Rate("rotation within 0.1 degree", turned, trials, at_least=0.95, what="2-D Procrustes of rotated points"),
        Rate("theta, false positives", false, trials, at_most=0.07, what="equal classes, permutation p at most 0.05"),
        Rate("AUC coverage, null", blind, trials, at_least=0.92, what="equal classes, 0.5 inside the 95% interval"),
    )


def echo_rates(trials: int) -> tuple[Rate, ...]:
    """The planted model: forced histories give q, nothing for q = 0, nothing past the last turn; steering flips."""
    from cutaway.planted.echo import echo

    planted, silent = echo(0.6, spread=1.0), echo(0.0, spread=1.0)
    runs, nulls, targets = max(trials // 20, 2), max(trials // 5, 4), 2400
    within = false = distant = 0
    for seed in range(runs):
        found = style_effects(planted, targets, seed)
        within += _near(found["dose 2"].difference, planted.truth.risk_difference, 0.03)
        distant += _near(found["distance 2"].difference, 0.0, 0.03)
    for seed in range(nulls):
        false += not _covers(style_effects(silent, targets // 8, seed)["dose 2"].difference, 0.0)
    flips, stray, tries = steering_flips(echo(0.6, n_questions=60), trials)
    return (
        Rate(
            "planted effect within 0.03", within, runs, at_least=0.9, what=f"forced effect of q = 0.6, {targets} pairs"
        ),
        Rate("nothing past the last turn", distant, runs, at_least=0.9, what="effect two turns back within 0.03 of 0"),
        Rate("planted null, false positives", false, nulls, at_most=0.1, what="q = 0, yet the interval misses 0"),
        Rate("steering flips", flips, tries, at_least=0.9, what="style flipped by a step along the style direction"),
        Rate(
            "random directions flip", stray, tries, at_most=0.05, what="style flipped by a random step of equal length"
        ),
    )


def naive_reading(items: "SimulatedItems", seed: int = 0) -> Stickiness:
    """Transitions of simulated items with both controls, ten strata of difficulty."""
    edges = np.quantile(items.odds, np.linspace(0, 1, 11)[1:-1])
    return measure_stickiness(
        items.outcomes,
        strata=np.digitize(items.odds, edges),
        history_free=items.history_free,
        permutations=200,
        seed=seed,
    )


def forced_effect(items: "SimulatedItems") -> Effect:
    """The forced-history estimate on simulated items: one draw after each history."""
    return effect("history", items.after_plus.ravel(), items.after_minus.ravel())


def style_effects(planted: "Echo", targets: int, seed: int = 0, width: int = 256) -> ForcedResult:
    """The forced-history method on the planted model: two turns back, one turn back held fixed, no history."""
    from cutaway.reasoning.history_echoes.engine import DialogueEngine

    chat = Chat(planted.model, DialogueEngine(planted.model, width), Settings(1.0, 1.0, 0, 2), seed=seed)
    items = style_items(planted)
    rng = np.random.default_rng(seed)
    asked = []
    for i in range(targets):
        at = rng.permutation(len(items))[:3]
        item, *earlier = (items[j] for j in at)
        asked.append(Target(item, tuple(earlier), tuple(earlier), tuple(earlier), i))
    plan = (
        Contrast("dose 2", Arm("++"), Arm("--")),
        Contrast("distance 2", Arm("+-"), Arm("--")),
        Contrast("history of - against none", Arm("--"), Arm()),
    )
    return run_forced(chat, asked, STYLE, plan, width=width)


def style_items(planted: "Echo") -> tuple[Item, ...]:
    """The planted model's questions as items."""
    return tuple(
        Item("style", q, "plain", "bright", "{}", e) for q, e in zip(planted.questions, planted.ease, strict=True)
    )


def steering_flips(planted: "Echo", tries: int, seed: int = 0) -> tuple[int, int, int]:
    """Greedy answers after a ``-`` turn that a step along the style direction turns to ``+``; random steps; tries.

    Questions must be of equal ease: one that is easy enough is answered ``+`` whatever came before.
    """
    import torch

    from cutaway.model import Add
    from cutaway.planted.echo import SITE, STYLES

    model, style = planted.model, planted.truth.direction
    plus = model.encode(STYLES[1])[0]
    rng = np.random.default_rng(seed)
    flips = stray = 0
    for _ in range(tries):
        first, second = (planted.questions[i] for i in rng.permutation(len(planted.questions))[:2])
        ids = model.chat_ids(f"{first}{STYLES[0]} {second}")
        random = torch.tensor(rng.normal(size=len(style)), dtype=torch.float32)
        steps = (2 * style, 2 * random / random.norm())
        answers = []
        for step in steps:
            with torch.inference_mode(), model.edited(Add(SITE, step, positions="last")):
                answers.append(int(model.logits(model.batch([ids]))[0, -1].argmax()) == plus)
        flips, stray = flips + answers[0], stray + answers[1]
    return flips, stray, tries


def _planted_rotation(angle: float, seed: int) -> float:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(500, 2)) + np.array([3.0, 0.0])
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return rotation(points, points @ np.array([[c, s], [-s, c]]) + 0.02 * rng.normal(size=points.shape))


def _covers(found: Finding, truth: float) -> bool:
    low = -np.inf if found.low is None else found.low
    high = np.inf if found.high is None else found.high
    return bool(low <= truth <= high)


def _above(found: Finding, bar: float) -> bool:
    return found.low is not None and found.low > bar


def _near(found: Finding, truth: float, width: float) -> bool:
    return found.value is not None and abs(found.value - truth) <= width
