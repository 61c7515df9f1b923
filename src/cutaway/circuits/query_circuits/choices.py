"""Multiple-choice queries: stem, four lettered options, and a neutral stem of the same token length as corruption."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutaway.circuits.pairs import Pair
from cutaway.circuits.query_circuits.data import Queries, Query, first_token
from cutaway.circuits.query_circuits.wordings import rewordings
from cutaway.errors import UsageError, nearest
from cutaway.model import Model

LETTERS = "ABCD"
NEUTRAL = (
    "This text says nothing about any topic. It is here to take up room, no more. Below it there are several lines,"
    " each with a letter in front. One of the lines is right and the others are not. Nobody tells which one it is, and"
    " nothing here can help to find out. Whoever reads this has to look at the lines below and to choose one of them,"
    " for better or worse. So please look at the lines below. Which one is the most likely answer?",
    "There is no question in these words. They only fill the space where one could stand, and they go on for a while."
    " Each of the options further down has its own letter. Exactly one letter should be given, and no reason for it."
    " None of these words has to do with any of the options, so they can be skipped. Take a moment, compare what is"
    " written there, and pick a letter in the end. Now it is time to pick. What should be chosen here?",
)
"""The first corrupts; the second is held out. Their last words, as many as a stem has tokens, stand for it."""


@dataclass(frozen=True)
class Question:
    """One multiple-choice question."""

    stem: str
    options: tuple[str, str, str, str]
    answer: str
    """A letter."""

    def prompt(self, stem: str) -> str:
        """Return the prompt with this or another stem; the letter of the answer comes next."""
        lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, self.options, strict=True)]
        return "\n".join([stem, *lines, "Answer: ("])


def default_folder() -> Path:
    """The questions of the source tree; UsageError where the package was installed without it."""
    folder = Path(__file__).parents[4] / "data" / "query-circuits"
    if not folder.is_dir():
        raise UsageError("no questions at hand; give a JSON-lines file with question, A, B, C, D and answer")
    return folder


def read_questions(subject: str | Path) -> list[Question]:
    """Read questions: a subject of the source tree (``astronomy``) or a JSON-lines file.

    UsageError for an unknown subject, a line that is not JSON, a missing column, or an answer that is no letter.
    """
    path = Path(subject)
    if path.suffix != ".jsonl":
        known = {each.stem.removeprefix("mmlu_"): each for each in sorted(default_folder().glob("mmlu_*.jsonl"))}
        if str(subject) not in known:
            raise UsageError(f"subject={str(subject)!r}{nearest(str(subject), known)}")
        path = known[str(subject)]
    if not path.is_file():
        raise UsageError(f"{path.name}: no such file; give JSON lines with question, A, B, C, D and answer")
    found = []
    # Not splitlines: questions contain other characters that Python takes for ends of lines.
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path.name}, line {number}: not JSON ({error.msg})") from None
        if missing := {"question", "answer", *LETTERS} - row.keys():
            raise UsageError(f"{path.name}, line {number}: {sorted(missing)[0]!r} is missing")
        if row["answer"] not in LETTERS:
            raise UsageError(f"{path.name}, line {number}: answer {row['answer']!r} is none of {LETTERS}")
        options = tuple(" ".join(str(row[letter]).split()) for letter in LETTERS)
        found.append(Question(" ".join(row["question"].split()), options, row["answer"]))  # type: ignore[arg-type]
    return found


def multiple_choice(
    model: Model,
    questions: Sequence[Question],
    n: int,
    *,
    wordings: int = 9,
    longest: int = 120,
    seed: int = 0,
) -> Queries:
    """Return up to ``n`` queries out of ``questions``, in random order.

    longest: prompts of more tokens are left out, as are stems with too few wordings and stems for which no neutral
    stem of equal token length exists; all are counted.
    """
    if n < 1:
        raise UsageError(f"n={n}: 1 or more queries")
    reasons = {f"more than {longest} tokens": 0, "fewer wordings than asked for": 0, "no neutral stem of its length": 0}
    long_, few, none = reasons
    items: list[Query] = []
    order = np.random.default_rng(seed).permutation(len(questions))
    for question in (questions[i] for i in order):
        if len(items) == n:
            break
        if len(model.encode(question.prompt(question.stem), special=True)) > longest:
            reasons[long_] += 1
            continue
        try:
            query = choice_pair(model, question, question.stem)
            again = choice_pair(model, question, question.stem, NEUTRAL[1])
        except UsageError:
            reasons[none] += 1
            continue
        others = list(_others(model, question, wordings + 1))
        if len(others) <= wordings:
            reasons[few] += 1
            continue
        held = (("another corruption", again), ("another wording", others.pop()))
        items.append(Query(query.name, query, tuple(others), held, question.answer))
    if not items:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        raise UsageError(f"none of {len(questions)} questions can be used with {model.name}: {why}")
    return Queries("multiple choice", tuple(items), tuple((why, count) for why, count in reasons.items() if count))


def choice_pair(model: Model, question: Question, stem: str, neutral: str = NEUTRAL[0]) -> Pair:
    """Return the pair of a stem and the neutral stem of equal token length, in front of the same options.

    UsageError, with both tokenisations, where none of the neutral stems gives a prompt of the same length.
    """
    clean = question.prompt(stem)
    ids = model.encode(clean, special=True)
    right = first_token(model, clean, question.answer)
    wrong = tuple(first_token(model, clean, letter) for letter in LETTERS if letter != question.answer)
    closest: list[int] = []
    for text in _ends(neutral):
        other = model.encode(question.prompt(text), special=True)
        if len(other) == len(ids):
            return Pair(tuple(ids), tuple(other), (right,), wrong, stem)
        if not closest or abs(len(other) - len(ids)) < abs(len(closest) - len(ids)):
            closest = other
    shown = [" ".join(repr(model.decode([token])) for token in each) for each in (ids, closest)]
    raise UsageError(
        f"no neutral stem of the token length of {stem[:60]!r}: the prompt has {len(ids)} tokens, the closest"
        f" {len(closest)}; nothing is padded.\n  clean:     {shown[0]}\n  corrupted: {shown[1]}"
    )


def _ends(text: str) -> Iterator[str]:
    """Yield the last words of ``text``, ever more of them; each also without a stop behind its first word."""
    words = text.split()
    for start in range(len(words) - 1, -1, -1):
        first, rest = words[start].capitalize(), words[start + 1 :]
        yield " ".join([first.rstrip(",.?"), *rest])
        yield " ".join([first, *rest])


def _others(model: Model, question: Question, n: int) -> Iterator[Pair]:
    made = 0
    for stem in rewordings(question.stem, question.options):
        if made == n:
            return
        try:
            found = choice_pair(model, question, stem)
        except UsageError:
            continue  # this wording has no neutral twin; another has
        made += 1
        yield found
