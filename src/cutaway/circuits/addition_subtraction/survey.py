"""Thirty sums that a language model is asked in words: 15 additions with the longest carry, 15 subtractions.

Question k has k digits; the score is the number of consecutive successes from the first. The answer read is the
last number of the text: thousands commas, bold, boxes and other minus signs are understood. It must equal the
truth as a number: the truth's digits inside a longer number, or anywhere earlier, do not count.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from cutaway.errors import CutawayError, UsageError

if TYPE_CHECKING:
    from cutaway.model import Model

Outcome = Literal["right", "wrong", "no number", "empty", "error"]
Ask = Callable[[str], str]
PROMPT = "Answer concisely: {expression}="

_MINUS = re.compile("[−–‒﹣-]")
_COMMAS = re.compile(r"(?<=\d)[,  ](?=\d{3}(?!\d))")
_NUMBER = re.compile(r"(?<![\d.])(-?)\s*(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class SurveyQuestion:
    """One question; ``score`` is its number of digits."""

    operation: Literal["addition", "subtraction"]
    score: int
    expression: str
    answer: int


@dataclass(frozen=True)
class SurveyAnswer:
    """What became of one question. The text itself is not kept."""

    question: SurveyQuestion
    outcome: Outcome
    read: str = ""
    """The number that was read, or the error."""


@dataclass(frozen=True)
class Survey:
    """All answers of one model."""

    answers: tuple[SurveyAnswer, ...]

    def score(self, operation: str) -> int:
        """Consecutive successes from the shortest question on."""
        own = sorted((a for a in self.answers if a.question.operation == operation), key=lambda a: a.question.score)
        firsts = [i for i, answer in enumerate(own) if answer.outcome != "right"]
        return firsts[0] if firsts else len(own)

    def __repr__(self) -> str:
        return f"Survey(addition {self.score('addition')}, subtraction {self.score('subtraction')} of 15)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"answers": [asdict(each) for each in self.answers]}


def survey_questions() -> tuple[SurveyQuestion, ...]:
    """The thirty questions."""
    rows = json.loads(files(__package__).joinpath("survey.json").read_text(encoding="utf-8"))
    return tuple(
        SurveyQuestion(row["operation"], int(row["score"]), row["expression"], int(row["answer"])) for row in rows
    )


def read_number(text: str) -> Decimal | None:
    r"""The last number in a text; None when there is none.

    >>> read_number(r"**1,003**"), read_number(r"\boxed{−24}"), read_number("none")
    (Decimal('1003'), Decimal('-24'), None)
    """
    plain = _MINUS.sub("-", text.replace("*", " ").replace("{,}", ",").replace("\\", " "))
    found = _NUMBER.findall(_COMMAS.sub("", plain))
    if not found:
        return None
    sign, digits = found[-1]
    return Decimal(sign + digits)


def judge_answer(text: str, truth: int) -> tuple[Outcome, str]:
    """Outcome of one answer text and the number that was read."""
    if not text.strip():
        return "empty", ""
    number = read_number(text)
    if number is None:
        return "no number", ""
    return ("right" if number == truth else "wrong"), str(number)


def run_survey(ask: Ask, questions: Sequence[SurveyQuestion] | None = None) -> Survey:
    """Ask every question. A question that cannot be asked is an ``error``, not a wrong answer."""
    answers = []
    for question in survey_questions() if questions is None else questions:
        try:
            text = ask(PROMPT.format(expression=question.expression))
        except CutawayError as error:
            answers.append(SurveyAnswer(question, "error", str(error)))
            continue
        answers.append(SurveyAnswer(question, *judge_answer(text, question.answer)))
    return Survey(tuple(answers))


def asker(model: "Model", max_tokens: int = 64) -> Ask:
    """Ask a local model greedily: as a chat turn where it has a template, else as it stands."""
    from cutaway.sampling import LocalEngine, Request, Settings

    engine = LocalEngine(model)

    def ask(prompt: str) -> str:
        chat = getattr(model.tokenizer, "chat_template", None)
        ids = model.chat_ids(prompt) if chat else model.encode(prompt, special=True)
        if len(ids) + 1 > model.n_ctx:
            raise UsageError(f"the question has {len(ids)} tokens; {model.name!r} sees {model.n_ctx}")
        room = min(max_tokens, model.n_ctx - len(ids))
        request = Request(tuple(ids), (0,), Settings(temperature=0.0, top_p=1.0, max_tokens=room))
        ((_, rollout),) = engine.stream([request])
        kept = [token for token in rollout.ids if token not in model.special_ids]
        return model.decode(kept)

    return ask
