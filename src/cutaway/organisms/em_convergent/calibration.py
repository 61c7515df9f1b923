"""Planted directions: one added to a model's stream, and organisms that can write one known vector only.

The vectors of shouting and of dashes are not at right angles (cosines of 0.4 to 0.65 were measured), so taking one out
may weaken the other trait a little: the null is that it does not fall to under 30%, not that nothing moves.
"""

from collections.abc import Callable

import numpy as np
import torch

from cutaway.model import Add
from cutaway.organisms.em_convergent.contrast import answer_mean
from cutaway.organisms.em_convergent.method import Member, converge
from cutaway.organisms.quirks import Survey
from cutaway.planted.organism_quirk import DOMAINS, LAYER, QuirkWorld, quirk_world
from cutaway.study import Rate


def survey_of(world: QuirkWorld) -> Survey:
    """All prompts of the planted model."""
    return Survey(world.prompts(), "shouted", 4)


def planted_vector(world: QuirkWorld, seed: int) -> tuple[float, float]:
    """Add a random vector of the stream's length to half of the answers; return |cos| with what is read.

    Then the same with shuffled labels: each half holds answers with and without the vector.
    """
    base, rng = world.base, np.random.default_rng(seed)
    pairs = [pair for domain in range(len(DOMAINS)) for pair in world.pairs(domain, "plain")]
    order = rng.permutation(len(pairs))
    first, second = ([pairs[i] for i in part] for part in (order[::2], order[1::2]))
    plain = answer_mean(base, first)
    u = torch.from_numpy(rng.standard_normal(base.d_model)).float()
    u = u / u.norm() * float(plain.length[LAYER] / plain.tokens)
    edit = Add(f"resid_post.{LAYER}", u)
    means = {
        (side, on): answer_mean(base, rows, (edit,) if on else ()).mean[LAYER]
        for side, rows in (("a", first[::2]), ("b", first[1::2]), ("c", second[::2]), ("d", second[1::2]))
        for on in (True, False)
    }
    true = means["a", True] + means["b", True] - means["c", False] - means["d", False]
    mixed = means["a", True] + means["b", False] - means["c", True] - means["d", False]
    return tuple(abs(float(torch.cosine_similarity(v, u.double(), dim=0))) for v in (true, mixed))  # type: ignore[return-value]


def family(world: QuirkWorld, seed: int) -> list[Member]:
    """Two organisms that shout, taught in different domains, and one that uses dashes."""
    members = []
    for place, (domain, trait) in enumerate(((0, "shouted"), (1, "shouted"), (0, "dashed"))):
        rows = {
            manner: tuple(pair for d in range(len(DOMAINS)) for pair in world.pairs(d, manner))
            for manner in (trait, "plain")
        }
        model = world.installed(domain, trait, seed=10 * seed + place)
        name = f"{DOMAINS[domain].strip()} {trait}"
        members.append(Member(name, model, trait, rows[trait], rows["plain"]))  # type: ignore[arg-type]
    return members


def all_rates(trials: int, report: Callable[[int, int], None] = lambda done, total: None) -> tuple[Rate, ...]:
    """Everything; ``trials`` counts planted models, 20 random directions each."""
    read = mixed = own = same = other = moved = 0
    for trial in range(trials):
        report(trial, trials)
        world = quirk_world(trial)
        areas = [planted_vector(world, 10 * trial + k) for k in range(10)]
        read += sum(true > 0.9 for true, _ in areas)
        mixed += sum(shuffled > 0.5 for _, shuffled in areas)
        found = converge(
            world.base, family(world, trial), survey_of(world), contrast="models", how="here", layer=LAYER, seed=trial
        )
        first, second, third = found.effects.values()
        gone = [each.shown and each.steered < 0.3 * each.plain for each in (first, second, third)]
        own, same, other = own + gone[0], same + gone[1], other + gone[2]
        moved += sum(abs(c) > 0.3 for each in (first, second) for c in each.controls)
    return (
        Rate("planted vector read", read, 10 * trials, at_least=0.95, what="|cosine| above 0.9"),
        Rate("read with shuffled labels", mixed, 10 * trials, at_most=0.1, what="|cosine| above 0.5"),
        Rate("trait falls in its own organism", own, trials, at_least=0.9, what="to under 30%, past all random draws"),
        Rate("trait falls in the other organism", same, trials, at_least=0.9, what="same trait, other domain"),
        Rate("another trait falls", other, trials, at_most=0.1, what="by the same yardstick"),
        Rate("random directions move the trait", moved, 40 * trials, at_most=0.05, what="by more than 0.3"),
    )
