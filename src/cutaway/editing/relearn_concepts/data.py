"""A tagged corpus, made from a seed: the tag of a word follows from the verb and the preposition before it.

"She waits for Lisbon and they pay in June." Neither verb nor preposition alone gives the tag (the table is close to a
Latin square), half of the tagged words are invented and may be anything, and the fillers of the test part are not in
the training part: a tagger has to read the context. The other fillers are facts (cities, months, foods, companies).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cutaway.errors import UsageError, nearest
from cutaway.model import Model
from cutaway.training import Data, Row, data_of
from cutaway.training.data import UNLABELLED

LABELS = ("O", "CITY", "PERSON", "MONTH", "FOOD", "COMPANY")
Part = Literal["train", "test"]

_VERBS: dict[str, dict[str, str]] = {
    "waits": {"in": "CITY", "for": "PERSON", "from": "MONTH"},
    "pays": {"in": "MONTH", "for": "FOOD", "from": "CITY"},
    "works": {"in": "FOOD", "for": "COMPANY", "from": "CITY"},
    "hears": {"in": "MONTH", "for": "CITY", "from": "PERSON"},
    "asks": {"in": "COMPANY", "for": "FOOD", "from": "PERSON"},
    "trades": {"in": "FOOD", "for": "CITY", "from": "COMPANY"},
    "starts": {"in": "CITY", "for": "COMPANY", "from": "MONTH"},
}
_SUBJECTS = ("She", "He", "Nobody", "Everybody", "Someone", "Anyone")
_LATER = ("often", "now", "again", "today", "still", "also")
_INVENTED = (
    *("Blaster", "Corvel", "Dunmer", "Fassel", "Gorlin", "Hamdor", "Istel", "Jorvik", "Kelmar", "Lunden", "Morvan"),
    *("Nastor", "Orbel", "Pindar", "Quorn", "Rastel", "Sorben", "Tandor", "Ulvar", "Vestin", "Wolmar", "Yastin"),
    *("Zandor", "Belfor", "Crandel", "Dorsin", "Elvast", "Fenmor", "Galtor", "Hestin", "Imbral", "Kastor"),
)
_FILLERS: dict[str, tuple[str, ...]] = {
    "CITY": (
        *("Lisbon", "Paris", "Rome", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi", "Berlin", "Dublin"),
        *("Vienna", "Athens", "Prague", "Warsaw", "Madrid", "Seoul"),
    ),
    "PERSON": (
        *("Anna", "Peter", "Maria", "Thomas", "Laura", "David", "Julia", "Martin", "Emma", "Simon"),
        *("Alice", "Robert", "Helen", "Frank", "Clara", "Oscar"),
    ),
    "MONTH": (
        *("January", "March", "April", "June", "July", "September", "October", "December"),
        *("February", "May", "August", "November"),
    ),
    "FOOD": (
        *("bread", "cheese", "rice", "soup", "honey", "butter", "apples", "beans", "pasta", "sugar"),
        *("onions", "pepper", "milk", "salt", "carrots", "grapes"),
    ),
    "COMPANY": (
        *("Toyota", "Siemens", "Nokia", "Sony", "Samsung", "Boeing", "Intel", "Philips", "Honda", "Nestle"),
        *("Volvo", "Airbus", "Canon", "Bosch"),
    ),
}


@dataclass(frozen=True)
class Sentence:
    """Words, each with its label."""

    words: tuple[str, ...]
    labels: tuple[str, ...]


def vocabulary() -> tuple[str, ...]:
    """Return every word, as it stands at a sentence's start or after a blank."""
    later = [*_VERBS, "in", "for", "from", "and", *_LATER, *(word for fill in _FILLERS.values() for word in fill)]
    return (*_SUBJECTS, *(f" {word}" for word in (*later, *_INVENTED, *(s.lower() for s in _SUBJECTS))), " .")


def sentences(n: int, part: Part = "train", *, without: str = "", seed: int = 0) -> list[Sentence]:
    """Return ``n`` sentences; ``without`` leaves a label out. UsageError for a label there is not."""
    if without and without not in LABELS[1:]:
        raise UsageError(f"without={without!r}{nearest(without, LABELS[1:])}")
    rng = np.random.default_rng((seed, part == "test"))
    return [_sentence(rng, part, without) for _ in range(n)]


def fillers(label: str, part: Part) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the real and the invented words that may stand for ``label``; of each, a quarter is for the test."""

    def dealt(words: Sequence[str]) -> tuple[str, ...]:
        cut = len(words) * 3 // 4
        return tuple(words[:cut] if part == "train" else words[cut:])

    return dealt(_FILLERS[label]), dealt(_INVENTED)


def tagged(
    model: Model, given: Sequence[Sentence], labels: Sequence[str] = LABELS, *, continuations: bool = False
) -> Data:
    """Return sentences as rows whose words are labelled at their last token, after it is read.

    ``continuations`` labels every token of a word. UsageError for a label that is not among ``labels``.
    """
    place = {label: i for i, label in enumerate(labels)}
    rows = []
    for sentence in given:
        ids: list[int] = []
        marks: list[int] = []
        for i, (word, label) in enumerate(zip(sentence.words, sentence.labels, strict=True)):
            if label not in place:
                raise UsageError(f"label {label!r}{nearest(label, labels)}")
            pieces = model.encode(word if i == 0 else f" {word}")
            ids += pieces
            marks += [place[label] if continuations else UNLABELLED] * (len(pieces) - 1) + [place[label]]
        rows.append((Row(tuple(ids), (0.0,) * len(ids), tuple(marks)),))
    return data_of(rows, context=model.n_ctx)


def _sentence(rng: np.random.Generator, part: Part, without: str) -> Sentence:
    words: list[str] = []
    labels: list[str] = []
    for clause in range(2):
        options = [(v, p, label) for v, table in _VERBS.items() for p, label in table.items() if label != without]
        verb, preposition, label = options[int(rng.integers(len(options)))]
        subject = str(rng.choice(_SUBJECTS))
        filler = str(rng.choice(fillers(label, part)[int(rng.integers(2))]))
        plain = [subject if clause == 0 else subject.lower(), *([str(rng.choice(_LATER))] * int(rng.integers(2)))]
        words += [*plain, verb, preposition, filler, "and" if clause == 0 else "."]
        labels += ["O"] * len(plain) + ["O", "O", label, "O"]
    return Sentence(tuple(words), tuple(labels))
