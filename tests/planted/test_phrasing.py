"""The model that one direction of its embedding makes brittle, and the null that no style moves."""

import numpy as np
import pytest

from cutaway.finetuning.exact import Item, score
from cutaway.planted.phrasing import PlantedPhrasing, planted_phrasing


@pytest.fixture(scope="module")
def planted() -> PlantedPhrasing:
    return planted_phrasing()


def by_style(planted: PlantedPhrasing) -> np.ndarray:
    queries = planted.queries(40, seed=8)
    styles = range(len(planted.places))
    items = [Item(*planted.item(query, style)) for style in styles for query in queries]
    return score(planted.model, items, batch=240).exact.reshape(len(planted.places), -1).mean(1)


def test_the_answer_turns_where_the_style_crosses_the_middle(planted: PlantedPhrasing) -> None:
    right = by_style(planted)
    assert right[planted.places < -0.3].min() >= 0.95
    assert right[planted.places > 0.3].max() <= 0.05


def test_styles_lie_on_the_line_and_keep_their_places(planted: PlantedPhrasing) -> None:
    embed = planted.model.hf.get_input_embeddings().weight.detach()
    ids = [planted.item((0, 1), style)[0][0] for style in range(len(planted.places))]
    along = (embed[ids] @ planted.direction).numpy()
    assert np.corrcoef(along, planted.places)[0, 1] > 0.995
    assert float(planted.direction.norm()) == pytest.approx(1.0, abs=1e-5)


def test_tuning_styles_lie_below_the_middle_and_are_not_tested_with(planted: PlantedPhrasing) -> None:
    assert (planted.places[list(planted.tuning)] < 0).all()
    assert not set(planted.tuning) & set(planted.held_out)
    assert len(set(planted.held_out)) == 11
    assert (planted.places[list(planted.held_out)] > 0).any()


def test_no_style_moves_the_null() -> None:
    assert by_style(planted_phrasing(brittle=False, steps=120)).min() >= 0.95
