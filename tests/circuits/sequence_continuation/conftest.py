"""One planted model of each composition, its prompts, and a bench."""

import pytest

from cutaway.circuits.sequence_continuation.data import Rows, generate, prepare
from cutaway.circuits.sequence_continuation.method import Bench
from cutaway.planted.sequence import Sequence, sequence


def rows_of(planted: Sequence, n: int = 8, verb: str = "done") -> dict[str, Rows]:
    return prepare(planted.model, generate(planted.tasks, verb, n, words=planted.words))[0]


@pytest.fixture(scope="session")
def planted() -> Sequence:
    return sequence("v", compensate=True)


@pytest.fixture(scope="session")
def rows(planted: Sequence) -> dict[str, Rows]:
    return rows_of(planted)


@pytest.fixture(scope="session")
def held(planted: Sequence) -> dict[str, Rows]:
    return rows_of(planted, verb="lost")


@pytest.fixture
def bench(planted: Sequence, rows: dict[str, Rows]) -> Bench:
    return Bench(planted.model, rows["numerals"])


@pytest.fixture(scope="session", params=["v", "k", "q"])
def composed(request: pytest.FixtureRequest) -> tuple[Sequence, dict[str, Rows]]:
    made = sequence(request.param)
    return made, rows_of(made, 6)
