"""Rollouts shared between methods: the same prefix gives the same draws, and a tree draws them once."""

from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.planted import EXACT, reasoner
from cutaway.reasoning.embedding import cosine
from cutaway.reasoning.rollouts import draw_rollouts, rollout_seeds
from cutaway.sampling import BranchTree, LocalEngine

PLANTED = reasoner("fpa")


def test_a_longer_request_begins_with_the_shorter_one() -> None:
    engine = LocalEngine(PLANTED.model)
    prefix = PLANTED.prompt_ids
    few, many = (draw_rollouts(engine, [prefix], n, EXACT)[0] for n in (3, 5))
    assert many[:3] == few
    assert len({each.seed for each in many}) == 5


def test_counts_by_prefix_and_none_at_all() -> None:
    prefixes = [PLANTED.prompt_ids, (*PLANTED.prompt_ids, PLANTED.sample_trace(0)[0])]
    found = draw_rollouts(LocalEngine(PLANTED.model), prefixes, [0, 2], EXACT)
    assert [len(each) for each in found] == [0, 2]


def test_seeds_depend_on_prefix_and_seed() -> None:
    assert len({rollout_seeds((1, 2), 1)[0], rollout_seeds((1, 3), 1)[0], rollout_seeds((1, 2), 1, seed=1)[0]}) == 3


def test_a_second_method_finds_the_rollouts_in_the_tree(tmp_path: Path) -> None:
    engine = LocalEngine(PLANTED.model)
    with BranchTree.open(tmp_path, engine.identity) as tree:
        first = draw_rollouts(engine, [PLANTED.prompt_ids], 4, EXACT, tree=tree)
        spent = engine.cost.decoded
        assert draw_rollouts(engine, [PLANTED.prompt_ids], 4, EXACT, tree=tree) == first
    assert engine.cost.decoded == spent


def test_greedy_repeats_are_refused() -> None:
    from cutaway.sampling import Settings

    with pytest.raises(UsageError, match="temperature=0"):
        draw_rollouts(LocalEngine(PLANTED.model), [PLANTED.prompt_ids], 2, Settings(0.0))


def test_cosine_of_zero_vectors_is_zero() -> None:
    a = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosine(a, a), [[1.0, 0.0], [0.0, 0.0]])
