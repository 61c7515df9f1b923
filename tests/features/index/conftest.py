"""One small index for all tests that only read it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # let the tests import their helpers by name

from makers import ODD, SMALL, detector, texts, tiny

from cutaway.features.index import FeatureIndex, fill
from cutaway.model import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="session")
def index(model: Model, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    """Neurons of all layers, and a dictionary whose first latent fires on one odd token alone."""
    folder = tmp_path_factory.mktemp("index")
    return fill(model, texts(), folder, dictionaries={"odd": detector(model, ODD)}, config=SMALL)
