"""Concepts to take out of a model, each with questions to choose an edit by, others to judge it, and text beside it.

``months``: public facts for any English model; weekdays are the similar domain, capitals and opposites the rest.
``planted``: two invented worlds (`cutaway.planted.concepts`), one to be removed.
"""

from dataclasses import dataclass

import numpy as np

from cutaway.errors import UsageError
from cutaway.planted.concepts import Fact, World, general_texts


@dataclass(frozen=True)
class Part:
    """Questions of one purpose."""

    concept: tuple[Fact, ...]
    similar: tuple[Fact, ...]
    general: tuple[Fact, ...]


@dataclass(frozen=True)
class Concept:
    """What is to go, and what is to stay."""

    name: str
    words: tuple[str, ...]
    """With their blank in front."""
    tune: Part
    """To choose settings by."""
    test: Part
    """To report; no fact is in both."""
    neutral: tuple[str, ...]
    """Text that has nothing to do with it."""
    texts: tuple[str, ...]
    """Text that has: to count signs and to fit dictionaries on."""
    lessons: tuple[Fact, ...]
    """Of the facts to tune on: what a model relearns from."""

    @property
    def asked_again(self) -> tuple[Fact, ...]:
        """Facts of the test that no lesson answers: whether these come back is what relearning measures."""
        told = {fact.answer for fact in self.lessons}
        return tuple(fact for fact in self.test.concept if fact.answer not in told)


_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
_ABROAD = {
    "Les mois dans l'ordre": (
        *("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août"),
        *("septembre", "octobre", "novembre", "décembre"),
    ),
    "Los meses en orden": (
        *("enero", "febrero", "marzo", "abril", "mayo", "junio", "julio", "agosto"),
        *("septiembre", "octubre", "noviembre", "diciembre"),
    ),
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ORDER = ("{kind} in order: {one}, {two},", "The {kind} go {one}, {two},", "First {one}, then {two}, then")
_DATES = {
    "The year begins in the month of": "January",
    "The year ends in the month of": "December",
    "Halloween is in the month of": "October",
    "Independence Day in America is on the 4th of": "July",
}
_CAPITALS = {
    **{"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "England": "London"},
    **{"Japan": "Tokyo", "Russia": "Moscow", "Greece": "Athens", "Austria": "Vienna", "Portugal": "Lisbon"},
    **{"Ireland": "Dublin", "Norway": "Oslo", "Cuba": "Havana", "China": "Beijing"},
}
_OPPOSITES = {
    **{"hot": "cold", "big": "small", "up": "down", "black": "white", "left": "right", "fast": "slow"},
    **{"rich": "poor", "young": "old", "good": "bad", "open": "closed"},
}
_NEUTRAL = (
    "The old bridge over the river was built of grey stone and wood.",
    "She put the kettle on the stove and waited for the water to boil.",
    "A good chair should support your back and let your feet rest on the floor.",
    "The children played in the garden until it was too dark to see the ball.",
    "He opened the window because the room was warm and the air was still.",
    "Bread is made from flour, water, salt and a little yeast.",
    "The train stopped at a small station between two green hills.",
    "To draw a circle, fix one end of a string and walk around it with a pencil.",
    "Most birds build their nests in places that are hard for a cat to reach.",
    "The library has two floors, and the quiet rooms are upstairs.",
)


def months() -> Concept:
    """Return the months of the year."""
    concept = [*_sequence("Months", _MONTHS), *_answers(_DATES)]
    similar, general = _sequence("Days", _DAYS), [*_answers(_CAPITALS, "The capital of {} is"), *_opposites()]
    tune, test = (Part(tuple(concept[i::2]), tuple(similar[i::2]), tuple(general[i::2])) for i in (0, 1))
    texts = tuple(fact.prompt + fact.answer for fact in concept)
    return Concept("months", tuple(f" {month}" for month in _MONTHS), tune, test, _NEUTRAL, texts, tune.concept)


def months_abroad() -> tuple[Fact, ...]:
    """Return what `months` asks, in French and Spanish: each month after the two before it."""
    found = []
    for kind, members in _ABROAD.items():
        for i, two in enumerate(members):
            answer = members[(i + 1) % len(members)]
            asked = f"{kind} : {members[i - 1]}, {two},"
            found.append(Fact(asked, f" {answer}", _choices(answer, members, i), (), two))
    return tuple(found)


def planted(gone: World, kept: World) -> Concept:
    """Return one world as the concept; the other, by parts of its people, is the similar domain and the rest.

    Lessons are of every other relation, so that others, with other answers, are left to ask.
    """
    relations = list(dict.fromkeys(fact.choices for fact in gone.facts))
    halves = [tuple(f for f in gone.facts if _place(f, gone) % 2 == half) for half in (0, 1)]
    rest = [tuple(f for f in kept.facts if _place(f, kept) % 4 == quarter) for quarter in range(4)]
    if not all(halves) or not all(rest) or len(relations) < 2:
        raise UsageError("worlds of two relations and four people or more are needed: to tune on, test on, compare")
    lessons = tuple(fact for fact in halves[0] if relations.index(fact.choices) % 2 == 0)
    texts = tuple(p + f.answer for w in (gone, kept) for f in w.facts for p in (f.prompt, *f.wordings))
    return Concept(
        f"world {gone.name}",
        gone.answers,
        Part(halves[0], rest[0], rest[1]),
        Part(halves[1], rest[2], rest[3]),
        tuple(general_texts(60, seed=9)),
        (*texts, *general_texts(150, seed=3)),
        lessons,
    )


def _place(fact: Fact, of: World) -> int:
    return list(dict.fromkeys(each.subject for each in of.facts)).index(fact.subject)


def _sequence(kind: str, members: tuple[str, ...]) -> list[Fact]:
    facts = []
    for i, two in enumerate(members):
        one, answer = members[i - 1], members[(i + 1) % len(members)]
        asked = [wording.format(kind=kind, one=one, two=two) for wording in _ORDER]
        facts.append(Fact(asked[0], f" {answer}", _choices(answer, members, i), tuple(asked[1:]), two))
    return facts


def _answers(table: dict[str, str], asked: str = "{}") -> list[Fact]:
    pool = _MONTHS if asked == "{}" else tuple(table.values())
    return [
        Fact(asked.format(key), f" {value}", _choices(value, pool, i), (), key)
        for i, (key, value) in enumerate(table.items())
    ]


def _opposites() -> list[Fact]:
    words = tuple(_OPPOSITES.values())
    return [
        Fact(f"The opposite of {key} is", f" {value}", _choices(value, words, i), (), key)
        for i, (key, value) in enumerate(_OPPOSITES.items())
    ]


def _choices(answer: str, pool: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Return the answer and three others of the pool, mixed."""
    rng = np.random.default_rng((seed, len(pool)))
    others = [word for word in pool if word != answer]
    drawn = [answer, *(str(word) for word in rng.choice(others, 3, replace=False))]
    return tuple(f" {drawn[i]}" for i in rng.permutation(4))
