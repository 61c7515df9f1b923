"""One small tagger, trained once, and its data."""

import pytest

from cutaway.editing.relearn_concepts import Tagger, make_tagger
from cutaway.editing.relearn_concepts.data import LABELS, sentences, tagged, vocabulary
from cutaway.planted.concepts import tiny_llama
from cutaway.training import Data, TrainConfig


@pytest.fixture(scope="session")
def tagger() -> Tagger:
    model = tiny_llama(vocabulary(), "tiny", layers=2, d_model=32, seed=0)
    config = TrainConfig(rate=4e-3, batch=16, steps=120, warm_up=10, bucket=1, precision="float32")
    return make_tagger(model, LABELS, tagged(model, sentences(1000)), config)


@pytest.fixture(scope="session")
def data(tagger: Tagger) -> Data:
    return tagged(tagger.model, sentences(200, seed=1))


@pytest.fixture(scope="session")
def test(tagger: Tagger) -> Data:
    return tagged(tagger.model, sentences(40, "test", seed=2))
