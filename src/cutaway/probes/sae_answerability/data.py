"""Questions with passages that hold the answer or do not: real ones, and generated ones without shortcuts.

`qnli_items` reads sentence and question pairs (GLUE QNLI). `equation_items` and `celebrity_items` are generated in
three kinds:

    plain     what is asked for stands in the passage or is missing: shared words give the answer away
    matched   two questions about one passage, one of them answerable; all words of both stand in it
    swapped   one question about two passages, in which two names changed places

Items of a pair share their group. `render` writes an item in one of `TEMPLATES`. Source: card sae-answerability, Data.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from cutaway.errors import UsageError, nearest
from cutaway.model import Model

Kind = Literal["plain", "matched", "swapped"]
TEMPLATES = ("question first", "passage first", "instruction", "json", "chat")
_LETTERS = tuple("abcdefghijkmnpqrstuvwxyz")
_FIRST = ("Mara", "Tobin", "Ilse", "Renzo", "Odile", "Kasper", "Wanda", "Emeric", "Sunniva", "Lucan", "Petra", "Anselm")
_LAST = ("Olin", "Vask", "Terrado", "Brandt", "Quill", "Marsh", "Ferro", "Hallow", "Ness", "Corwin")
_FACTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "city": ("lives in {}", "In which city does {} live?", ("Oslo", "Lisbon", "Quito", "Hanoi", "Turin")),
    "instrument": ("plays the {}", "Which instrument does {} play?", ("cello", "flute", "harp", "banjo", "oboe")),
    "pet": ("keeps a {}", "Which animal does {} keep?", ("parrot", "tortoise", "ferret", "goat", "rabbit")),
    "dish": ("cooks {}", "Which dish does {} cook?", ("ramen", "goulash", "paella", "risotto", "borscht")),
    "sport": ("practises {}", "Which sport does {} practise?", ("fencing", "rowing", "judo", "archery", "curling")),
    "craft": ("works as a {}", "Which trade does {} work in?", ("baker", "welder", "tailor", "printer", "mason")),
    "colour": ("paints in {}", "Which colour does {} paint in?", ("ochre", "indigo", "scarlet", "umber", "teal")),
}


@dataclass(frozen=True)
class Item:
    """One question with its passage."""

    id: str
    question: str
    context: str
    answerable: bool
    group: str


def qnli_items(path: str | Path, n: int, seed: int = 0, longest: int = 600) -> tuple[list[Item], str]:
    """Return ``n`` items, half answerable, each passage and question in one group; and the file's SHA-256.

    Groups join items that share a passage or a question. Passages of more than ``longest`` characters are left out.
    UsageError for a bad file, ids that carry two labels, or too few items.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path.name}: no such file; give JSON lines with id, question, context, answerable")
    content = path.read_bytes()
    rows = [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]
    seen: dict[str, bool] = {}
    for number, row in enumerate(rows, 1):
        if not {"id", "question", "context", "answerable"} <= row.keys() or not isinstance(row["answerable"], bool):
            raise UsageError(f"{path.name}, line {number}: id, question, context and answerable (true or false)")
        if seen.setdefault(row["id"], row["answerable"]) != row["answerable"]:
            raise UsageError(f"{path.name}, line {number}: id {row['id']!r} has both labels")
    rows = [row for row in rows if len(row["context"]) <= longest]
    by_label = [[row for row in rows if row["answerable"] == side] for side in (True, False)]
    if n < 2 or n // 2 > min(map(len, by_label)):
        raise UsageError(f"n={n}: 2 to {2 * min(map(len, by_label))} items of {path.name}")
    rng = np.random.default_rng(seed)
    chosen = [side[i] for side in by_label for i in rng.permutation(len(side))[: n // 2]]
    groups = _joined(chosen)
    items = [
        Item(row["id"], row["question"], row["context"], row["answerable"], f"qnli-{group}")
        for row, group in zip(chosen, groups, strict=True)
    ]
    return [items[i] for i in rng.permutation(len(items))], hashlib.sha256(content).hexdigest()


def equation_items(n: int, kind: Kind | str = "matched", seed: int = 0) -> list[Item]:
    """Return ``n`` items about assigned names; whether an asked expression can be computed."""
    return _pairs(n, kind, seed, "equation", _equation)


def celebrity_items(n: int, kind: Kind | str = "matched", seed: int = 0) -> list[Item]:
    """Return ``n`` items about invented people; whether the passage says what is asked of a person."""
    return _pairs(n, kind, seed, "celebrity", _celebrity)


def render(item: Item, template: str, model: Model | None = None) -> str | list[int]:
    """Write an item; ``chat`` gives token ids up to where the answer starts, and needs the model."""
    if template not in TEMPLATES:
        raise UsageError(f"template {template!r}{nearest(template, TEMPLATES)}")
    q, c = item.question, item.context
    if template == "chat":
        if model is None:
            raise UsageError("template 'chat' needs the model whose chat template it is")
        return model.chat_ids(f"{c}\n\nQuestion: {q}")
    return {
        "question first": f"Question: {q}\nPassage: {c}\nAnswer:",
        "passage first": f"Passage: {c}\nQuestion: {q}\nAnswer:",
        "instruction": f"Answer only from the passage; say so if it is not there.\n{c}\n{q}\nAnswer:",
        "json": json.dumps({"passage": c, "question": q}, ensure_ascii=False)[:-1] + ', "answer":',
    }[template]


def texts_of(items: Sequence[Item]) -> list[str]:
    """Return passage and question of each item as one text, for probes that see words alone."""
    return [f"{item.context} {item.question}" for item in items]


_Maker = Callable[[np.random.Generator, str], list[tuple[str, str, bool]]]


def _pairs(n: int, kind: str, seed: int, name: str, make: _Maker) -> list[Item]:
    if kind not in get_args(Kind):
        raise UsageError(f"kind={kind!r}{nearest(kind, get_args(Kind))}")
    if n < 2 or n % 2:
        raise UsageError(f"n={n}: an even number, 2 or more; items come in pairs")
    rng = np.random.default_rng((seed, len(name)))
    items: list[Item] = []
    for pair in range(n // 2):
        for question, context, answerable in make(rng, kind):
            items.append(Item(f"{name}-{len(items)}", question, context, answerable, f"{name}-{kind}-{seed}-{pair}"))
    return [items[i] for i in rng.permutation(len(items))]


def _equation(rng: np.random.Generator, kind: str) -> list[tuple[str, str, bool]]:
    a, b, c, d, lost, extra = (str(each) for each in rng.choice(_LETTERS, 6, replace=False))
    first, second, step, other, third = (int(each) for each in rng.integers(2, 20, 5))
    if kind == "plain":
        facts = [f"{a} = {first}", f"{b} = {second}", f"{c} = {third}"]
        known, missing = rng.permutation([a, b, c])[:2], (str(rng.choice([a, b, c])), lost)
        operator = str(rng.choice(["+", "-", "*"]))
        said = ". ".join(str(each) for each in rng.permutation(facts)) + "."
        return [(f"What is {x} {operator} {y}?", said, answer) for (x, y), answer in ((known, True), (missing, False))]
    up, down = (str(each) for each in rng.choice(["+", "-", "*"], 2))

    def context(solid: str, loose: str) -> str:
        facts = [
            f"{a} = {first}",
            f"{solid} = {a} {up} {step}",
            f"{loose} = {lost} {down} {other}",
            f"{extra} = {second}",
        ]
        return ". ".join(facts[i] for i in order) + "."

    order = rng.permutation(4)
    if kind == "matched":
        return [(f"What is {c}?", context(c, d), True), (f"What is {d}?", context(c, d), False)]
    return [(f"What is {c}?", context(c, d), True), (f"What is {c}?", context(d, c), False)]


def _celebrity(rng: np.random.Generator, kind: str) -> list[tuple[str, str, bool]]:
    one, two = (
        f"{first} {last}" for first, last in zip(rng.choice(_FIRST, 2, False), rng.choice(_LAST, 2, False), strict=True)
    )
    kinds = [str(each) for each in rng.choice(sorted(_FACTS), 5, replace=False)]
    said = {each: _FACTS[each][0].format(rng.choice(_FACTS[each][2])) for each in kinds}
    if kind == "plain":
        context = " ".join(f"{one} {said[each]}." for each in kinds[:4])
        asked = ((kinds[int(rng.integers(4))], True), (kinds[4], False))
        return [(_FACTS[each][1].format(one), context, answer) for each, answer in asked]
    order, mine = rng.permutation(4), kinds[:2]
    asked_kind = mine[int(rng.integers(2))]

    def context_of(first: str, second: str) -> str:
        facts = [f"{first if each in mine else second} {said[each]}." for each in kinds[:4]]
        return " ".join(facts[i] for i in order)

    question = _FACTS[asked_kind][1]
    if rng.random() < 0.5:
        one, two = two, one
    if kind == "matched":
        return [(question.format(one), context_of(one, two), True), (question.format(two), context_of(one, two), False)]
    return [(question.format(one), context_of(one, two), True), (question.format(one), context_of(two, one), False)]


def _joined(rows: Sequence[dict[str, str]]) -> list[int]:
    """Number the groups of rows that share a passage or a question, also through others."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for row in rows:
        parent[root(f"c {row['context']}")] = root(f"q {row['question']}")
    roots = [root(f"q {row['question']}") for row in rows]
    number = {key: i for i, key in enumerate(dict.fromkeys(roots))}
    return [number[key] for key in roots]
