"""Items that fit two rules: two questions in one prompt, and pronouns whose case and gender agree in training.

*Pronouns*: a doctor or a nurse, a gap that wants a nominative or an objective pronoun, two pronouns that differ in
case and in gender. In training doctors are male and nurses female, so case and stereotype agree; in the test they
never do. The intended rule is case.

Source: card caft, Method B and C, Data. All sentences are made here.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from cutaway.finetuning.caft.method import Task
from cutaway.finetuning.choice import Choice, make_choice
from cutaway.model import Model
from cutaway.planted.spurious import A, B, DoubleItem, Law, Split, double_items

PLACES = ("clinic", "ward", "office", "lobby", "library", "canteen", "garden", "station", "museum", "market")
NOMINATIVE = (
    "After the {place} closed, the {job} was tired, so {gap} went home.",
    "The {job} left the {place} because {gap} had a train to catch.",
    "When the {job} reached the {place}, {gap} sat down.",
    "The {job} at the {place} smiled while {gap} read the letter.",
)
OBJECTIVE = (
    "The {job} was at the {place}, and a friend greeted {gap} there.",
    "The {job} waited near the {place} until we called {gap} back.",
    "We met the {job} at the {place} and thanked {gap} warmly.",
    "The {job} left the {place} early, so nobody saw {gap} again.",
)
PRONOUNS = {("nominative", "male"): " he", ("nominative", "female"): " she"}
PRONOUNS |= {("objective", "male"): " him", ("objective", "female"): " her"}
_SPLITS: dict[Split, tuple[int, int]] = {"train": (0, 6), "validation": (6, 8), "test": (8, 10)}


def double_task(
    model: Model, wanted: str, unwanted: str, *, train: int = 600, probe: int = 400, test: int = 300, seed: int = 0
) -> Task:
    """Return a task of double questions; directions come from training questions, tests from test questions."""

    def items(law: Law, split: Split, n: int) -> tuple[Choice, ...]:
        return tuple(
            double_choice(model, item) for item in double_items(wanted, unwanted, n, law, split=split, seed=seed)
        )

    return Task(
        train=items("tied", "train", train),
        probe=items("independent", "train", probe),
        held=items("independent", "validation", probe),
        tied=items("tied", "test", test),
        reversed=items("reversed", "test", test),
    )


def double_choice(model: Model, item: DoubleItem) -> Choice:
    """Return an item as tokens; the right option is the wanted rule's."""
    options = (A, B)
    return make_choice(model, item.prompt, options[item.wanted], options[1 - item.wanted], (item.wanted, item.unwanted))


def pronoun_items(law: Law, split: Split, n: int, seed: int = 0) -> list[tuple[str, str, str, tuple[int, int]]]:
    """Return (prompt, right, wrong, labels) with jobs, cases and the order of options balanced.

    Labels: the right case (0 nominative) and the gender that the job's stereotype names (0 male). Places differ
    between splits.
    """
    rng = np.random.default_rng((seed, ["independent", "tied", "reversed"].index(law), list(_SPLITS).index(split)))
    places = PLACES[slice(*_SPLITS[split])]
    cells = list(product((0, 1), (0, 1), (0, 1), range(4), places))
    chosen = [cells[i] for i in rng.permutation(len(cells))][:n]
    while len(chosen) < n:
        chosen.append(cells[int(rng.integers(len(cells)))])
    return [_pronoun(case, job, first, form, place, law, rng) for case, job, first, form, place in chosen]


def _pronoun(
    case: int, job: int, first: int, form: int, place: str, law: Law, rng: np.random.Generator
) -> tuple[str, str, str, tuple[int, int]]:
    cases, genders = ("nominative", "objective"), ("male", "female")
    stereotype = job
    gender = stereotype if law == "tied" else 1 - stereotype if law == "reversed" else int(rng.integers(2))
    right = PRONOUNS[cases[case], genders[gender]]
    wrong = PRONOUNS[cases[1 - case], genders[1 - gender]]
    shown = (right, wrong) if first else (wrong, right)
    text = (NOMINATIVE, OBJECTIVE)[case][form].format(place=place, job=("doctor", "nurse")[job], gap="___")
    prompt = f"{text} The gap is{shown[0]} or{shown[1]}. The gap is"
    return prompt, right, wrong, (case, stereotype)


def pronoun_task(model: Model, *, train: int = 240, probe: int = 120, test: int = 160, seed: int = 0) -> Task:
    """Return the pronoun task; see the module."""

    def items(law: Law, split: Split, n: int) -> tuple[Choice, ...]:
        return tuple(make_choice(model, *item) for item in pronoun_items(law, split, n, seed))

    return Task(
        train=items("tied", "train", train),
        probe=items("independent", "train", probe),
        held=items("independent", "validation", probe),
        tied=items("tied", "test", test),
        reversed=items("reversed", "test", test),
    )


def pairs(families: Sequence[str]) -> list[tuple[str, str]]:
    """Return all ordered pairs of different families, the wanted one first."""
    return [(a, b) for a, b in product(families, families) if a != b]
