"""Sequence prompts: made by position, or the published ones; their tokens checked, and what each filter dropped.

A prompt shows four consecutive members of a list, each after carrier words: "Van done in 1. Hat done in 2. ..." and
asks for the fifth. Its corrupted twin has the same carriers and random members, the last two not consecutive.

`prepare` keeps what can be compared position by position:

1. Members that are not one token in place are listed, and prompts with them are dropped.
2. Answer and distractor must differ in one last token after the same tokens. Where a tokenizer splits off the space
   before a digit, that space belongs to the prompt, and the token compared is the digit.
3. All prompts of a task have the same number of tokens, and each member stands at the same place.
4. The model's top token is the answer, with more than twice the distractor's probability.
5. Prompts with the same carriers are kept in all tasks or in none (``joint``).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import CutawayError, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model import Model

MEMBERS: dict[str, tuple[str, ...]] = {
    "numerals": tuple(str(i) for i in range(1, 13)),
    "numwords": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    "months": (
        *("January", "February", "March", "April", "May", "June", "July", "August"),
        *("September", "October", "November", "December"),
    ),
    "months backwards": (
        *("December", "November", "October", "September", "August", "July", "June", "May"),
        *("April", "March", "February", "January"),
    ),
}
"""Members of each task's list, in the order in which they are asked for."""
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
OBJECTS = (
    *("Apple", "Ball", "Book", "Boat", "Box", "Bread", "Bridge", "Camera", "Car", "Chair", "Clock", "Coat", "Cup"),
    *("Desk", "Door", "Dress", "Engine", "Farm", "Fish", "Flag", "Glass", "Gold", "Guitar", "Hat", "House", "Ice"),
    *("Key", "Lake", "Lamp", "Leaf", "Letter", "Map", "Milk", "Moon", "Oil", "Paper", "Phone", "Plate", "Ring"),
    *("River", "Road", "Rock", "Salt", "Ship", "Shoe", "Song", "Star", "Stone", "Table", "Train", "Tree", "Van"),
    *("Wall", "Watch", "Water", "Wheel", "Window", "Wood"),
)
NAMES = (
    *("Adam", "Alice", "Anna", "Ben", "Carl", "David", "Emma", "Eric", "Frank", "George", "Grace", "Henry", "Jack"),
    *("James", "Jane", "John", "Kate", "Laura", "Lisa", "Luke", "Maria", "Mark", "Mary", "Paul", "Peter", "Robert"),
    *("Sam", "Sarah", "Simon", "Thomas", "Tom", "William"),
)
CARRIERS = {"done": OBJECTS, "lost": OBJECTS, "born": NAMES}
"""Template, by its verb, to the words it is about."""
FILTERS = (
    "a member is not one token",
    "answer and distractor do not differ in one token",
    "members do not stand at the same places",
    "the model's top token is not the answer",
    "the answer is not twice as probable as the distractor",
    "the prompt with these carriers was dropped in another task",
)
_SENTENCE = re.compile(r"(\S+) (\w+) in (\w+)\.")
_LAST = re.compile(r"(\S+) (\w+) in$")


@dataclass(frozen=True)
class Prompt:
    """One sequence prompt and its corrupted twin."""

    task: str
    verb: str
    words: tuple[str, ...]
    """Five carriers."""
    members: tuple[str, ...]
    """The four shown."""
    corrupted: tuple[str, ...]
    """The four of the corrupted twin."""
    answer: str

    def text(self, members: Sequence[str] | None = None) -> str:
        """The prompt, with its own members or others."""
        shown = self.members if members is None else members
        told = [f"{word} {self.verb} in {member}." for word, member in zip(self.words, shown, strict=False)]
        return " ".join([*told, f"{self.words[4]} {self.verb} in"])

    @property
    def distractor(self) -> str:
        return self.members[-1]


@dataclass(frozen=True)
class Checked:
    """What the filters did to one task's prompts."""

    task: str
    given: int
    split: tuple[str, ...]
    """Members that are not one token in place."""
    dropped: Mapping[str, int]
    """Prompts dropped by each filter, in order."""
    kept: int

    def __repr__(self) -> str:
        why = ", ".join(f"{n} because {reason}" for reason, n in self.dropped.items() if n)
        split = f"; not one token: {', '.join(self.split)}" if self.split else ""
        return f"Checked({self.task}: {self.kept} of {self.given} kept{'; ' + why if why else ''}{split})"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "split": list(self.split), "dropped": dict(self.dropped)}


@dataclass(frozen=True, eq=False)
class Rows:
    """The prompts of one task as tokens, position by position comparable."""

    task: str
    prompts: tuple[Prompt, ...]
    ids: "Tensor"
    """[n pos]"""
    corrupted: "Tensor"
    """[n pos]"""
    answer: "Tensor"
    """[n] token ids"""
    distractor: "Tensor"
    """[n] token ids"""
    places: tuple[int, ...]
    """Positions of the four members."""

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, which: Sequence[int]) -> "Rows":
        """Some of the rows, in the order given; one may be taken twice."""
        chosen = {name: getattr(self, name)[list(which)] for name in ("ids", "corrupted", "answer", "distractor")}
        return replace(self, prompts=tuple(self.prompts[i] for i in which), **chosen)


def generate(
    tasks: Sequence[str] | Mapping[str, Sequence[str]],
    verb: str,
    n: int,
    *,
    seed: int = 0,
    words: Sequence[str] | None = None,
) -> dict[str, tuple[Prompt, ...]]:
    """``n`` prompts of each task; prompt i has the same carriers and the same start in all of them.

    tasks: names out of `MEMBERS`, or name to its own list of members.
    """
    if unknown := [task for task in tasks if not isinstance(tasks, Mapping) and task not in MEMBERS]:
        raise UsageError(f"task {unknown[0]!r}{nearest(unknown[0], MEMBERS)}")
    if words is None and verb not in CARRIERS:
        raise UsageError(f"template {verb!r}{nearest(verb, CARRIERS)}")
    lists = tasks if isinstance(tasks, Mapping) else {task: MEMBERS[task] for task in tasks}
    carriers, size = tuple(words or CARRIERS[verb]), min(map(len, lists.values()))
    if size < 6 or len(carriers) < 5:
        raise UsageError("a task needs a list of at least 6 members, and a template 5 carrier words")
    rng, made = np.random.default_rng([seed, *verb.encode()]), []
    for _ in range(n):
        chosen = tuple(carriers[i] for i in rng.choice(len(carriers), 5, replace=False))
        made.append((chosen, int(rng.integers(size - 4)), _corrupt(rng, size)))
    return {
        task: tuple(
            Prompt(
                task,
                verb,
                chosen,
                tuple(members[start : start + 4]),
                tuple(members[i] for i in other),
                members[start + 4],
            )
            for chosen, start, other in made
        )
        for task, members in lists.items()
    }


def whole_words(model: "Model", verb: str) -> tuple[str, ...]:
    """The template's carrier words that are one token for this model, at the start of a text and after a space."""
    words = CARRIERS[verb]
    first = {word: len(_encode(model, f"{word} {verb}")) for word in words}
    later = {word: len(_encode(model, f"{words[0]} {verb} {word}")) for word in words}
    return tuple(w for w in words if (first[w], later[w]) == (min(first.values()), min(later.values())))


def read_prompts(path: str | Path, task: str) -> tuple[Prompt, ...]:
    """Prompts of a published file; CutawayError for a line of another form."""
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        clean, other = _SENTENCE.findall(row["text"]), _SENTENCE.findall(row["corrupted"])
        last = _LAST.search(row["text"])
        if len(clean) != 4 or len(other) != 4 or last is None:
            raise CutawayError(f"{Path(path).name}, line {number}: not four sentences and the start of a fifth")
        words = (*(word for word, _, _ in clean), last[1])
        members, corrupted = tuple(m for _, _, m in clean), tuple(m for _, _, m in other)
        found.append(Prompt(task, last[2], words, members, corrupted, row["answer"].strip()))
    return tuple(found)


def prepare(
    model: "Model",
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    joint: bool = True,
    keep: int | None = None,
    least: int = 0,
) -> tuple[dict[str, Rows], tuple[Checked, ...]]:
    """Tokens of every task's prompts, at most ``keep`` of each, and what was dropped (see the module).

    least: a task that keeps fewer prompts by itself is left out, and drops no other task's prompts.
    Raises UsageError where a task, or every task, has no prompt left.
    """
    tokens = {task: _Tokens.read(model, given) for task, given in prompts.items()}
    why = {task: _reasons(model, prompts[task], tokens[task]) for task in prompts}
    weak = [task for task in prompts if why[task].count("") < least]
    if joint:
        why |= _join(prompts, {task: reasons for task, reasons in why.items() if task not in weak})
    checked = tuple(
        Checked(
            task,
            len(given),
            tokens[task].split,
            {reason: why[task].count(reason) for reason in FILTERS},
            why[task].count(""),
        )
        for task, given in prompts.items()
    )
    left = [task for task in prompts if task not in weak]
    if empty := [each for each in checked if not left or (each.task in left and each.kept == 0)]:
        raise UsageError(f"no prompt of {empty[0].task!r} is left for this model: {empty[0]!r}")
    kept = {task: [i for i, reason in enumerate(why[task]) if not reason][:keep] for task in left}
    return {task: tokens[task].rows(model, task, prompts[task], kept[task]) for task in left}, checked


def other_tasks(n: int = 20) -> dict[str, tuple[tuple[str, str], ...]]:
    """Questions that a removed circuit might break: (prompt, answer) by task, ``n`` at most of each."""
    spanish = ("uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez")
    meses = ("enero", "febrero", "marzo", "abril", "mayo", "junio", "julio", "agosto", "septiembre", "octubre")
    found: dict[str, list[tuple[str, str]]] = {}
    for step in (1, 2, 3, 10):
        rows = [[start + step * i for i in range(5)] for start in range(1, 1 + n)]
        found[f"count by {step}"] = [(" ".join(map(str, row[:4])), f" {row[4]}") for row in rows]
    for name, listed in (("Spanish numbers", spanish), ("Spanish months", meses)):
        found[name] = [(" ".join(listed[i : i + 4]), f" {listed[i + 4]}") for i in range(len(listed) - 4)]
    for digits, low, high in (("one", 1, 9), ("two", 10, 49)):
        pairs = [(a, b) for a in range(low, high + 1) for b in range(low, a) if digits == "two" or a + b < 10]
        pairs = pairs[:: max(1, len(pairs) // n)]
        found[f"{digits}-digit sums"] = [(f"2 + 2 = 4. 3 + 1 = 4. {a} + {b} =", f" {a + b}") for a, b in pairs]
        found[f"{digits}-digit differences"] = [(f"4 - 2 = 2. 3 - 1 = 2. {a} - {b} =", f" {a - b}") for a, b in pairs]
    found["word problems"] = [
        (f"{name} has {a} apples and buys {b} more. Now {name} has", f" {a + b}")
        for name, (a, b) in zip(NAMES, ((a, b) for a in range(1, 5) for b in range(1, 6)), strict=False)
    ]
    return {task: tuple(given[:n]) for task, given in found.items()}


@dataclass(frozen=True)
class _Tokens:
    """Every prompt's tokens: shared start, answer's and distractor's last token; None where they do not fit."""

    clean: list[tuple[list[int], int, int] | None]
    corrupted: list[list[int]]
    split: tuple[str, ...]
    places: tuple[int, ...]

    @classmethod
    def read(cls, model: "Model", prompts: Sequence[Prompt]) -> "_Tokens":
        members = dict.fromkeys(m for p in prompts for m in (*p.members, *p.corrupted, p.answer))
        sizes = {m: len(_encode(model, f"{prompts[0].words[0]} {prompts[0].verb} in {m}.")) for m in members}
        whole = [m for m in members if sizes[m] == min(sizes.values())]
        clean, corrupted = [], []
        for each in prompts:
            answer, distractor = (_encode(model, f"{each.text()} {m}") for m in (each.answer, each.distractor))
            fits = len(answer) == len(distractor) and answer[:-1] == distractor[:-1] and answer != distractor
            clean.append((answer[:-1], answer[-1], distractor[-1]) if fits else None)
            corrupted.append(_encode(model, f"{each.text(each.corrupted)} {each.answer}")[:-1])
        split = tuple(m for m in members if m not in whole)
        return cls(clean, corrupted, split, _places(model, prompts, clean, whole))

    def rows(self, model: "Model", task: str, prompts: Sequence[Prompt], which: Sequence[int]) -> Rows:
        import torch

        clean = [each for each in (self.clean[i] for i in which) if each is not None]
        return Rows(
            task,
            tuple(prompts[i] for i in which),
            torch.tensor([ids for ids, _, _ in clean], device=model.device),
            torch.tensor([self.corrupted[i] for i in which], device=model.device),
            torch.tensor([answer for _, answer, _ in clean], device=model.device),
            torch.tensor([distractor for _, _, distractor in clean], device=model.device),
            self.places,
        )


def _encode(model: "Model", text: str) -> list[int]:
    return model.encode(text, special=True)


def _places(model: "Model", prompts: Sequence[Prompt], clean: Sequence[Any], whole: Sequence[str]) -> tuple[int, ...]:
    """Where the members stand in the prompts of the usual length; empty where there is none."""
    usual = Counter(len(each[0]) for each in clean if each is not None).most_common(1)
    for prompt, each in zip(prompts, clean, strict=True):
        if each is None or len(each[0]) != usual[0][0] or not {*prompt.members, prompt.answer} <= {*whole}:
            continue
        found = []
        for slot in range(4):
            members = list(prompt.members)
            members[slot] = next(m for m in whole if m not in prompt.members)
            other = _encode(model, f"{prompt.text(members)} {prompt.answer}")[:-1]
            found += [i for i, (a, b) in enumerate(zip(each[0], other, strict=False)) if a != b]
        if len(found) == 4:
            return tuple(found)
    return ()


def _reasons(model: "Model", prompts: Sequence[Prompt], tokens: _Tokens) -> list[str]:
    """For each prompt the first filter it falls to, or an empty string."""
    import torch

    usual = Counter(len(each[0]) for each in tokens.clean if each is not None).most_common(1)
    why = []
    for prompt, clean, corrupted in zip(prompts, tokens.clean, tokens.corrupted, strict=True):
        if {*prompt.members, *prompt.corrupted, prompt.answer} & {*tokens.split}:
            why.append(FILTERS[0])
        elif clean is None:
            why.append(FILTERS[1])
        elif not _aligned(clean[0], corrupted, prompt, tokens.places, usual[0][0]):
            why.append(FILTERS[2])
        else:
            why.append("")
    left = [i for i, reason in enumerate(why) if not reason]
    for at in range(0, len(left), 64):
        part = left[at : at + 64]
        given = [each for each in (tokens.clean[i] for i in part) if each is not None]
        with torch.no_grad():
            ids = torch.tensor([each[0] for each in given], device=model.device)
            log = model.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].log_softmax(-1)
        for row, i in enumerate(part):
            _, answer, distractor = given[row]
            if int(log[row].argmax()) != answer:
                why[i] = FILTERS[3]
            elif float(log[row, answer] - log[row, distractor]) <= np.log(2):
                why[i] = FILTERS[4]
    return why


def _aligned(clean: list[int], corrupted: list[int], prompt: Prompt, places: tuple[int, ...], usual: int) -> bool:
    if not places or not len(clean) == len(corrupted) == usual:
        return False
    differ = {i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b}
    return differ == {i for i, a, b in zip(places, prompt.members, prompt.corrupted, strict=True) if a != b}


def _join(prompts: Mapping[str, Sequence[Prompt]], why: dict[str, list[str]]) -> dict[str, list[str]]:
    """Drop a prompt everywhere that was dropped in one task."""
    carriers = {task: [(p.verb, p.words) for p in given] for task, given in prompts.items()}
    if len({tuple(each) for each in carriers.values()}) > 1:
        raise UsageError("joint filtering needs prompts with the same carriers, in the same order, in every task")
    bad = [any(reasons[i] for reasons in why.values()) for i in range(len(next(iter(why.values()))))]
    return {task: [own or (FILTERS[5] if bad[i] else "") for i, own in enumerate(each)] for task, each in why.items()}


def _corrupt(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    """Four random members, the last not the one after the third."""
    while True:
        drawn = tuple(int(i) for i in rng.integers(size, size=4))
        if drawn[3] != drawn[2] + 1:
            return drawn
