"""The published transplant numbers, derived again from the published tables."""

from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.reasoning.thought_branches.published import (
    COMPLETIONS,
    HEADLINE,
    curve,
    curves,
    read_published,
    slopes,
    steps,
    suppression,
    waits,
)

DATA = Path(__file__).parents[3] / "data" / "thought-branches"


@pytest.fixture(scope="module")
def tables():
    return read_published(DATA)


def test_the_tables_are_whole(tables):
    moved, hidden = tables
    assert len(moved) == 1058
    assert moved["pn"].nunique() == 47
    assert len(hidden) == 922
    assert hidden["pn"].nunique() == 41
    for _, problem in moved.groupby("pn"):
        ordered = problem.sort_values("sentence_num")
        assert ordered["sentence_num"].tolist() == list(range(len(ordered)))
        np.testing.assert_allclose(ordered["cue_p_prev"].to_numpy()[1:], ordered["cue_p"].to_numpy()[:-1], atol=1e-7)
    counted = moved[moved["cue_score"] > 0]
    completions = counted["cue_score"] / counted["cue_p"]
    assert completions.max() <= COMPLETIONS + 1e-6
    assert (completions > 47.9).all()


def test_the_six_published_means(tables):
    found = curve(tables[0], list(HEADLINE))
    for interval, published in zip(found, HEADLINE.values(), strict=True):
        assert interval.value == pytest.approx(published, abs=0.0006)
        assert interval.n == 47


def test_the_published_step_statistics(tables):
    found = steps(tables[0])
    assert found.mean.value == pytest.approx(0.41, abs=0.005)
    assert found.above_03.value == pytest.approx(0.72, abs=0.005)
    assert found.above_08.value == pytest.approx(0.11, abs=0.005)


def test_the_curve_climbs_in_every_fifth_and_per_sentence(tables):
    assert (np.diff(curves(tables[0], list(HEADLINE)).mean(0)) > 0.05).all()
    slope = slopes(tables[0])
    assert slope.low > 0.02
    assert slope.high < 0.07


def test_hiding_the_hint_matters_where_pasting_matters(tables):
    found, n = suppression(*tables)
    assert n == 559
    assert found.value == pytest.approx(0.160, abs=0.005)
    assert found.low > 0


def test_hinted_chains_wait_less():
    right, same = waits(DATA), waits(DATA, "free_same")
    assert right.value == pytest.approx(0.848, abs=0.005)
    assert same.value == pytest.approx(0.407, abs=0.005)
    assert right.high > 1, "36 chains do not settle it against chains that end right"
    assert same.high < 1


def test_other_folders_and_columns_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"transplant\.csv\.gz is not in"):
        read_published(tmp_path)
    with pytest.raises(UsageError, match="against='free'"):
        waits(DATA, "free")
