"""The room's tiny model."""

import importlib.util
from pathlib import Path

import pytest

from cutaway.model import Model

_spec = importlib.util.spec_from_file_location("features_conftest", Path(__file__).parent.parent / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
room = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(room)


@pytest.fixture
def started() -> Model:
    return room.reader(start=True)
