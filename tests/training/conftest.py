"""Fixtures of the training room; what they are made of lies in `training_data`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cutaway.model import Model
from cutaway.training import Data

sys.path.insert(0, str(Path(__file__).parent))

from training_data import rows_of, tiny


@pytest.fixture
def make() -> Callable[..., Model]:
    return tiny


@pytest.fixture
def data() -> Data:
    return rows_of(12)
