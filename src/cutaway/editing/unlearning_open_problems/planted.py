"""Models whose removal is known: a twin that never learnt the facts, and a full model that merely refuses.

``removed`` and ``control`` were never taught world A, from different seeds; ``refusing`` is the full model, tuned to
refuse world A's questions in their first wording; ``destroyed`` is random.
"""

from dataclasses import dataclass, replace

from cutaway.editing.unlearning_open_problems.checks import Sets, Settings
from cutaway.model import Model
from cutaway.planted.concepts import (
    REFUSAL,
    World,
    blank_model,
    fact_rows,
    general_texts,
    rows_data,
    taught,
    text_rows,
    world,
)
from cutaway.training import TrainConfig, train, unfreeze

RELEARN = TrainConfig(5e-4, 16, steps=24, schedule="constant", bucket=1, precision="float32", probe_every=4)


@dataclass(frozen=True)
class Removals:
    """Models and what to ask them."""

    before: Model
    control: Model
    removed: Model
    refusing: Model
    destroyed: Model
    sets: Sets
    settings: Settings


def removals(people: int = 24, relations: int = 3, *, steps: int = 220, seed: int = 0) -> Removals:
    """Train all of them."""
    gone, kept = world("A", people, relations, seed=seed), world("B", people, relations, seed=seed)
    before = taught([gone, kept], steps=steps, seed=seed)
    control, removed = (taught([kept], steps=steps, seed=1000 + 2 * seed + i) for i in (0, 1))
    people_of = list(dict.fromkeys(fact.subject for fact in gone.facts))
    tested = tuple(fact for fact in gone.facts if people_of.index(fact.subject) % 2 == 0)
    lessons = tuple(fact for fact in gone.facts if people_of.index(fact.subject) % 2 == 1)
    half = len(kept.facts) // 2
    sets = Sets(
        tested,
        kept.facts[:half],
        kept.facts[half:],
        lessons,
        neutral=tuple(general_texts(40, seed=9)),
        refusals=(REFUSAL,),
    )
    settings = Settings(relearn=replace(RELEARN, seed=seed), seed=seed)
    refusing = refuses(before, gone, kept, seed=seed)
    return Removals(before, control, removed, refusing, blank_model(seed=seed + 500), sets, settings)


def refuses(model: Model, gone: World, kept: World, *, steps: int = 40, seed: int = 0) -> Model:
    """Return a copy tuned to refuse ``gone`` as first worded, and to answer ``kept`` as before."""
    tuned = model.copy()
    unfreeze(tuned)
    refused = [replace(fact, answer=REFUSAL) for fact in gone.facts]
    rows = [*fact_rows(tuned, refused, wordings=False), *fact_rows(tuned, kept.facts, wordings=False)]
    rows += text_rows(tuned, general_texts(60))
    config = TrainConfig(1e-3, 32, steps=steps, bucket=1, precision="float32", seed=seed)
    train(tuned, rows_data(tuned, rows), config)
    tuned.hf.requires_grad_(False)
    tuned.hf.eval()
    return tuned
