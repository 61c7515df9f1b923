"""Queries: a prompt with its corrupted twin, other wordings of it, and pairs held out for the final check.

Three kinds: indirect objects (who was given the thing), arithmetic (sums and products) and multiple choice
(`multiple_choice`). A query's twins have the same number of tokens, position by position; nothing is ever padded.
Wordings may differ in length from the query, for scores are summed over positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import Literal, get_args

import numpy as np

from cutaway.circuits.pairs import Pair, pair
from cutaway.errors import UsageError, nearest
from cutaway.model import Model

Operation = Literal["sum", "product"]

NAMES = (
    "Anna Ben Carl Clara David Emma Eric Frank Grace Henry Jack James Jane John Julia Kate Kevin Laura Leo Lisa Lucy"
    " Mark Martin Mary Max Michael Nick Nina Oliver Paul Peter Rachel Robert Rose Ryan Sam Sarah Simon Thomas Tom"
)
PLACES = "airport bank church factory farm garden hospital hotel library market museum office park school"
THINGS = "ball bag book box card coin cup drink flag gift key lamp letter map pen picture plate ring ticket"
FRAMES = (
    "When {first} and {second} met at the {place}, {giver} handed a {thing} to",
    "After {first} and {second} had arrived at the {place}, {giver} passed a {thing} to",
    "Last week {first} and {second} worked at the {place}. In the end {giver} gave a {thing} to",
    "While {first} and {second} were waiting at the {place}, {giver} offered a {thing} to",
    "Yesterday {first} and {second} spent an hour at the {place}, and {giver} showed a {thing} to",
    "On Sunday {first} and {second} walked to the {place}. There {giver} sold a {thing} to",
    "Because {first} and {second} were late for the {place}, {giver} threw a {thing} to",
    "Once {first} and {second} had found the {place}, {giver} brought a {thing} to",
)
ARITHMETIC_FRAMES = (
    "{expression}=",
    "Calculate: {expression}=",
    "The result is {expression}=",
    "Work this out: {expression}=",
    "Math homework: {expression}=",
    "Here is a simple calculation: {expression}=",
)
_TRIES = 300


@dataclass(frozen=True)
class Query:
    """One question to explain, with what the search and its check need."""

    name: str
    pair: Pair
    wordings: tuple[Pair, ...]
    """The same question in other words, or others of the same form; each with an answer of its own."""
    held_out: tuple[tuple[str, Pair], ...]
    """What no choice may look at: the query with another corruption, another wording; ``(what it is, pair)``."""
    group: str = ""


@dataclass(frozen=True)
class Queries:
    """Queries of one kind, and how many of those drawn were left out, by reason."""

    kind: str
    items: tuple[Query, ...]
    left_out: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        out = "".join(f", {n} left out: {why}" for why, n in self.left_out)
        return f"Queries({self.kind!r}, {len(self)}{out})"


def indirect_objects(model: Model, n: int, *, wordings: int = 9, seed: int = 0) -> Queries:
    """Return ``n`` queries such as "When Anna and Ben met at the park, Ben handed a ball to", answered by "Anna".

    Corrupted: a third name gives. Held out: another third name; the other of the two gives, which turns the answer
    around; another query of the same frame. Wordings are other queries of the same frame and order of names.
    """
    _check_counts(n, wordings)
    rng = np.random.default_rng(seed)
    lists = {"name": NAMES, "place": PLACES, "thing": THINGS}
    words = {what: _single(model, text.split(), what) for what, text in lists.items()}
    items: dict[str, Query] = {}
    while len(items) < n:
        frame, receiver_first = FRAMES[len(items) % len(FRAMES)], bool(len(items) // len(FRAMES) % 2)
        group = f"{FRAMES.index(frame)} {'ABB' if receiver_first else 'BAB'}"
        drawn = [_scene(words, rng) for _ in range(wordings + 2)]
        query, *others = (_given(model, frame, receiver_first, scene, group) for scene in drawn)
        receiver, giver, _, fourth, *where = drawn[0]
        again, turned = (
            _given(model, frame, receiver_first, (receiver, giver, who, fourth, *where), group)
            for who in (fourth, receiver)
        )
        last = others.pop()
        held = (("another corruption", again), ("answer turned round", turned), ("another wording", last))
        items[query.name] = Query(query.name, query, tuple(others), held, group)
    return Queries("indirect objects", tuple(items.values()))


Scene = tuple[str, ...]
"""Receiver, giver, a third name, a fourth, place, thing."""


def _scene(words: dict[str, list[str]], rng: np.random.Generator) -> Scene:
    names = rng.choice(words["name"], 4, replace=False)
    return (*map(str, names), str(rng.choice(words["place"])), str(rng.choice(words["thing"])))


def _given(model: Model, frame: str, receiver_first: bool, scene: Scene, group: str) -> Pair:
    receiver, giver, third, _, place, thing = scene
    first, second = (receiver, giver) if receiver_first else (giver, receiver)
    clean, corrupted = (
        frame.format(first=first, second=second, giver=who, place=place, thing=thing) for who in (giver, third)
    )
    return pair(model, clean, corrupted, f" {receiver}", f" {giver}", group=group)


def _single(model: Model, words: Sequence[str], what: str) -> list[str]:
    found = [word for word in words if len(model.encode(f" {word}")) == 1]
    if len(found) < 4:
        raise UsageError(
            f"{model.name}: only {len(found)} of {len(words)} {what}s are one token in this model, and 4 are needed;"
            " use queries of your own (Query)"
        )
    return found


def arithmetic(
    model: Model, n: int, operation: Operation | str = "sum", *, operands: int = 2, wordings: int = 9, seed: int = 0
) -> Queries:
    """Return ``n`` queries such as "128+54=" with a result of three digits, answered by the result's first token.

    Corrupted: other numbers of as many digits, whose result starts with another token, which is the wrong answer.
    Wordings: other orders of the operands and other words around them. Held out: a second set of other numbers;
    another wording. Expressions that tokenise to unequal lengths are left out and counted.
    """
    if operation not in get_args(Operation):
        raise UsageError(f"operation={operation!r}{nearest(operation, get_args(Operation))}")
    if not 2 <= operands <= 5:
        raise UsageError(f"operands={operands}: 2 to 5")
    _check_counts(n, wordings)
    rng, sign = np.random.default_rng(seed), "+" if operation == "sum" else "*"
    total: Callable[[Sequence[int]], int] = sum if operation == "sum" else prod
    items: dict[str, Query] = {}
    unequal = 0
    while len(items) < n:
        numbers = _numbers(total, operands, operation, rng)
        first, second = (_like(numbers, total, rng) for _ in range(2))
        if first is None or second is None:
            continue
        query = _sum_pair(model, ARITHMETIC_FRAMES[0], sign, total, numbers, first)
        again = _sum_pair(model, ARITHMETIC_FRAMES[0], sign, total, numbers, second)
        others = _orders(model, sign, total, numbers, first, wordings + 1, rng)
        if query is None or again is None or len(others) < wordings + 1:
            unequal += 1
            if unequal > 50 * n:
                raise UsageError(f"{model.name}: too few {operation}s tokenise to equal lengths; use other operands")
            continue
        held = (("another corruption", again), ("another wording", others.pop()))
        items[query.name] = Query(query.name, query, tuple(others), held, f"{operands} operands")
    why = (("numbers of unequal token length or with equal first tokens", unequal),) if unequal else ()
    return Queries(f"{operation}s", tuple(items.values()), why)


def _numbers(
    total: Callable[[Sequence[int]], int], operands: int, operation: str, rng: np.random.Generator
) -> tuple[int, ...]:
    high = 999 if operation == "sum" else round(999 ** (1 / (operands - 1))) if operands > 1 else 999
    while True:
        numbers = tuple(int(x) for x in rng.integers(2, max(high, 4), operands))
        if 100 <= total(numbers) <= 999 and len(set(numbers)) > 1:
            return numbers


def _like(
    numbers: tuple[int, ...], total: Callable[[Sequence[int]], int], rng: np.random.Generator
) -> tuple[int, ...] | None:
    """Return other numbers of as many digits each, whose result of three digits starts with another digit.

    None where chance finds none: no two numbers of two digits and one have a sum of 200.
    """
    lows = [10 ** (len(str(x)) - 1) for x in numbers]
    for _ in range(_TRIES):
        other = tuple(int(rng.integers(low, 10 * low)) for low in lows)
        if 100 <= total(other) <= 999 and str(total(other))[0] != str(total(numbers))[0]:
            return other
    return None


def _orders(
    model: Model,
    sign: str,
    total: Callable[[Sequence[int]], int],
    numbers: tuple[int, ...],
    other: tuple[int, ...],
    n: int,
    rng: np.random.Generator,
) -> list[Pair]:
    """Return ``n`` other wordings in random order: orders of the operands first, then words around them."""
    orders = list(permutations(range(len(numbers))))
    choices = [(frame, order) for frame in ARITHMETIC_FRAMES for order in orders][1:]
    mixed = [choices[i] for i in rng.permutation(len(choices))]
    mixed.sort(key=lambda choice: choice[0] != ARITHMETIC_FRAMES[0])
    found: dict[str, Pair] = {}
    for frame, order in mixed:
        made = _sum_pair(model, frame, sign, total, [numbers[i] for i in order], [other[i] for i in order])
        if made is not None:
            found.setdefault(made.name, made)
        if len(found) == n:
            break
    # The held-out wording is taken from the end; let it not always be the one with the most words.
    pairs = list(found.values())
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _sum_pair(
    model: Model,
    frame: str,
    sign: str,
    total: Callable[[Sequence[int]], int],
    numbers: Sequence[int],
    other: Sequence[int],
) -> Pair | None:
    """Return the pair; None where the two differ in token length or their results in no first token."""
    clean, corrupted = (frame.format(expression=sign.join(map(str, each))) for each in (numbers, other))
    ids, others = model.encode(clean, special=True), model.encode(corrupted, special=True)
    right, wrong = first_token(model, clean, str(total(numbers))), first_token(model, corrupted, str(total(other)))
    if len(ids) != len(others) or right == wrong:
        return None
    return Pair(tuple(ids), tuple(others), (right,), (wrong,), clean)


def first_token(model: Model, prompt: str, answer: str) -> int:
    """Return the first token of ``answer`` behind ``prompt``; UsageError where the prompt's last token takes part."""
    ids, whole = model.encode(prompt, special=True), model.encode(prompt + answer, special=True)
    if whole[: len(ids)] != ids or len(whole) == len(ids):
        raise UsageError(f"{prompt!r} and its answer {answer!r} share a token in this model; end the prompt elsewhere")
    return whole[len(ids)]


def _check_counts(n: int, wordings: int) -> None:
    if n < 1:
        raise UsageError(f"n={n}: 1 or more queries")
    if wordings < 0:
        raise UsageError(f"wordings={wordings}: 0 or more")
