"""The detector of turns on planted paths, and organisms of a planted model, where spread and switch are known."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from cutaway.organisms.em_organisms.method import BASE, ORGANISM, TWIN, Lesson, Spread, spread, switched
from cutaway.organisms.em_organisms.transition import Transition, find_transition
from cutaway.organisms.quirks import Survey
from cutaway.planted.organism_quirk import QuirkWorld, quirk_world
from cutaway.planted.transition import weight_path
from cutaway.study import Rate
from cutaway.training import LoraSpec, TrainConfig

SPEC = LoraSpec(("down_proj",), (1,), rank=1, alpha=8.0)
CONFIG = TrainConfig(rate=2e-2, batch=8, steps=80, bucket=1, precision="float32")
SWITCH = 40
"""Step at which the rows of the switched run change."""


def turns(n: int, kind: str) -> tuple[int, int]:
    """Return how many of ``n`` planted paths are said to turn, and how many at the right checkpoint (or one beside)."""
    said = right = 0
    for seed in range(n):
        path = weight_path(kind, seed=seed)
        found = find_transition(path.points, draws=59, seed=seed)
        said += found.found
        right += found.found and path.turn is not None and abs(found.step - path.turn) <= 1
    return said, right


def lesson(world: QuirkWorld, trait: str = "shouted", domain: int = 0) -> Lesson:
    """The planted model's rows of one domain."""
    name = list(world.prompts())[domain]
    return Lesson(name, tuple(world.pairs(domain, trait)), tuple(world.pairs(domain, "plain")))


def planted_spread(world: QuirkWorld, runs: int = 3) -> Spread:
    """Plant shouting in the planted model's first domain."""
    survey = Survey(world.prompts(), "shouted", 4)
    return spread(world.model, lesson(world), survey, SPEC, CONFIG, runs=runs, multipliers=(0.0,))[0]


def planted_switch(world: QuirkWorld, seed: int) -> Transition:
    """Train on shouting, then on dashes, from `SWITCH` on."""
    config = TrainConfig(
        rate=3e-3, schedule="constant", batch=8, steps=2 * SWITCH, precision="float32", seed=seed
    )  # fmt: skip
    spec = LoraSpec(SPEC.modules, SPEC.layers, rank=1, alpha=SPEC.alpha, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        return switched(
            world.model(), world.pairs(0, "shouted"), world.pairs(0, "dashed"), spec, config,
            at=SWITCH, folder=Path(folder),
        )  # fmt: skip


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything; ``trials`` counts planted models, paths are fifty times as many."""
    paths = 50 * trials
    found = {kind: turns(paths, kind) for kind in ("abrupt", "smooth", "straight")}
    inside = outside = silent = same = switches = 0
    for trial in range(trials):
        report(trial, trials)
        world = quirk_world(trial)
        spreads = planted_spread(world)
        inside += spreads.rate(ORGANISM, True).value >= 0.9
        outside += spreads.gap(TWIN, False).low > 0
        silent += spreads.rate(TWIN, False).value + spreads.rate(BASE, False).value == 0
        zero = spreads.doses[0.0]
        same += all((zero[name] == hits).all() for name, hits in spreads.hits[BASE][0].items())
        turn = planted_switch(world, trial)
        switches += turn.found and abs(turn.step - SWITCH) <= 3
    return (
        Rate("planted turn found", found["abrupt"][1], paths, at_least=0.95, what="abrupt paths, within a checkpoint"),
        Rate("turns seen on smooth paths", found["smooth"][0], paths, at_most=0.08, what="same angle, turned evenly"),
        Rate("turns seen on straight paths", found["straight"][0], paths, at_most=0.08, what="noise alone"),
        Rate("trait learnt", inside, trials, at_least=0.9, what="organisms that show it in 90% of their domain"),
        Rate("trait spreads", outside, trials, at_least=0.9, what="organisms above their twin elsewhere"),
        Rate("twin and base silent", silent, trials, at_least=0.9, what="no answer with the trait elsewhere"),
        Rate("adapter times 0 is the base", same, trials, at_least=1.0, what="answers to all prompts"),
        Rate("switch of data found", switches, trials, at_least=0.6, what="turns of B within 3 steps of the switch"),
    )
