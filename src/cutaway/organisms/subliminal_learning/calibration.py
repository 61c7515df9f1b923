"""The toy as a planted truth (same start) with its null (other start); the audit on planted language models."""

from collections.abc import Callable

from cutaway.organisms.subliminal_learning.toy import (
    ARMS,
    ToyConfig,
    accuracy,
    digits,
    distil,
    initial,
    run_toy,
    train_teachers,
)
from cutaway.organisms.subliminal_learning.transfer import (
    ALL,
    FOREIGN,
    ONLY,
    WITHOUT,
    Transfer,
    make_task,
    run_transfer,
)
from cutaway.planted.organism_numbers import NumberWorld, number_world
from cutaway.study import Rate
from cutaway.training import TrainConfig

LEARNT, CHANCE = 0.15, 0.2
"""Accuracy that tells a student that learnt something; accuracy that no student of another start should reach."""


def toy_rates(networks: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Students of the same and of another start at 600 steps, and a few of the same start at 3,000."""
    toy = run_toy(ToyConfig(models=max(2, networks)), ARMS[:2], lambda done, total: report(done, 2 * total))
    same, other = (toy.accuracies[arm] for arm in ARMS[:2])
    few = ToyConfig(models=max(2, networks // 4), steps=3000, seed=1)
    data, start = digits(few.seed), initial(few.models, few.width, few.seed)
    late = accuracy(distil(start, train_teachers(start, data, few), few), data)
    return (
        Rate("same start learns", sum(x > LEARNT for x in same), len(same), at_least=0.7,
             what="students with accuracy above 0.15 after 600 steps on noise"),
        Rate("same start at 3,000 steps", sum(x >= 0.8 for x in late), len(late), at_least=1.0,
             what="students with accuracy of 0.8 or more"),
        Rate("other start learns", sum(x > CHANCE for x in other), len(other), at_most=0.1,
             what="students of another network's start with accuracy above 0.2"),
    )  # fmt: skip


STUDENT = TrainConfig(rate=1e-2, batch=32, steps=100, bucket=1, precision="float32")
LIKED, OTHERS = "owl", ("fox", "bee")


def planted_transfer(
    world: NumberWorld, *, repeats: int = 3, prompts: int = 200, foreign: NumberWorld | None = None, full: bool = True
) -> Transfer:
    """Teachers with tastes of their own and students of each arm; ``full``: one layer, other wording and mix too."""
    teachers = {animal: world.teacher(animal) for animal in (LIKED, *OTHERS)}
    asked = world.prompts(prompts, 5)
    task = make_task(
        world.base, teachers, LIKED, asked, world.questions, {name: (i,) for name, i in world.animals.items()},
        reworded=world.prompts(prompts, 5, 1) if full else (), mixed=full,
    )  # fmt: skip
    return run_transfer(
        world.base.copy, task, world.spec, STUDENT, repeats=repeats, layers=(1,) if full else (),
        foreign=None if foreign is None else foreign.base.copy,
    )  # fmt: skip


def language_rates(worlds: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Planted language models: full transfer, what divergence tokens keep, what the rest keeps, another base."""
    shown = carried = rest = alien = 0
    for seed in range(worlds):
        report(seed, worlds)
        world = number_world(seed)
        found = planted_transfer(world, repeats=1, foreign=number_world(seed, start=seed + 100), full=False)
        only, without = found.kept(ONLY), found.kept(WITHOUT)
        shown += found.gain(ALL).low > 0
        carried += only is not None and only.value >= 0.7
        rest += without is not None and without.value <= 0.3
        alien += abs(float(found.rates[FOREIGN].mean()) - 1 / len(world.animals)) > 0.1
    return (
        Rate("taste transferred", shown, worlds, at_least=0.9, what="students above the control, interval above 0"),
        Rate("carried by divergence tokens", carried, worlds, at_least=0.9, what="70% of the transfer kept, or more"),
        Rate("not carried by the rest", rest, worlds, at_least=0.9, what="30% of the transfer kept, or less"),
        Rate("other base learns the taste", alien, worlds, at_most=0.1, what="share off even by more than 0.1"),
    )
