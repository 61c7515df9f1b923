"""Tiny models of every family and prompts for them."""

import importlib.util
from pathlib import Path

import pytest

from cutaway.circuits.pairs import Pair, Pairs
from cutaway.model import Model

_spec = importlib.util.spec_from_file_location("families", Path(__file__).parent.parent / "model" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)


@pytest.fixture(params=sorted(families.CONFIGS))
def model(request: pytest.FixtureRequest) -> Model:
    return families.build(request.param)


@pytest.fixture
def llama() -> Model:
    return families.build("llama")


@pytest.fixture
def pairs() -> Pairs:
    """Two pairs of five tokens, two and three answers."""
    first = Pair((5, 9, 7, 30, 4), (5, 9, 8, 30, 4), (11,), (12,), "first")
    second = Pair((6, 19, 7, 3, 4), (16, 9, 8, 30, 4), (11,), (12, 14), "second")
    return Pairs((first, second))


@pytest.fixture
def late() -> Pairs:
    """Two pairs that share their first two tokens with their twins."""
    first = Pair((5, 9, 7, 30, 4), (5, 9, 8, 30, 4), (11,), (12,), "first")
    return Pairs((first, Pair((6, 19, 7, 3, 4), (6, 19, 7, 9, 4), (11,), (12, 14), "second")))
