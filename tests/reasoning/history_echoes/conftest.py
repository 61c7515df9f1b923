"""Shared parts of these tests: a planted model of answer style and a chat over it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cutaway.planted.echo import Echo, echo
from cutaway.reasoning.history_echoes import Chat
from cutaway.reasoning.history_echoes.engine import DialogueEngine
from cutaway.sampling import Settings

sys.path.insert(0, str(Path(__file__).parent))  # let the tests import their program by name


@pytest.fixture(scope="session")
def planted() -> Echo:
    return echo(0.6, spread=1.0)


@pytest.fixture
def chat_of() -> Callable[..., Chat]:
    def make(planted: Echo, slots: int = 64, temperature: float = 1.0, seed: int = 0, max_tokens: int = 2) -> Chat:
        engine = DialogueEngine(planted.model, slots)
        return Chat(planted.model, engine, Settings(temperature, 1.0, 0, max_tokens), seed=seed)

    return make
