"""Real word problems of two steps, with their worked solutions (GSM8K; ``data/gsm8k/SOURCE.md``)."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

TWO_STEPS = "two-steps"
"""What settings call these problems."""
_FILE = files(__package__) / "two_steps.json"


@dataclass(frozen=True)
class Problem:
    """A question whose answer takes two sums, the second of which needs the first one's result."""

    question: str
    steps: tuple[str, ...]
    """The worked solution, a sentence a step."""
    between: str
    """Result of the first sum: what someone answers who stops half-way."""
    answer: str


@lru_cache(maxsize=1)
def two_step_problems() -> tuple[Problem, ...]:
    """All of them, in the order of their source.

    >>> two_step_problems()[3].question
    'Tim has 30 less apples than Martha, and Harry has half as many apples as Tim. If Martha has 68 apples, how many \
apples does Harry have?'
    """
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(Problem(row["question"], tuple(row["steps"]), row["between"], row["answer"]) for row in rows)


def data_digest(asked: bool) -> dict[str, str]:
    """Digest of the file as it stands among a study's inputs; nothing where the study does not ask for it."""
    return {"data:two_steps.json": hashlib.sha256(_FILE.read_bytes()).hexdigest()} if asked else {}
