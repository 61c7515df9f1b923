"""The planted model in which manners are shared by all domains."""

import pytest

from cutaway.planted.null import null_model
from cutaway.planted.organism_quirk import quirk_world
from cutaway.study import Lab


@pytest.fixture(scope="session")
def world():
    return quirk_world(0)


@pytest.fixture
def lab(tmp_path):
    """A lab with a random model on disk, at ``home/../tiny``."""
    source = null_model(seed=1).model
    source.hf.save_pretrained(tmp_path / "tiny")
    source.tokenizer.save_pretrained(tmp_path / "tiny")
    return Lab(tmp_path / "home")
