"""Planted chains and pools for the tests of this folder."""

import functools
from typing import Any

from cutaway.planted.branches import Branches, branches
from cutaway.reasoning.thought_branches.calibration import EASY, SETTINGS, chain_of
from cutaway.reasoning.thought_branches.chain import Chain, Pool
from cutaway.sampling import BranchTree, LocalEngine

QUICK = EASY


@functools.cache
def planted(layout: str, **options: Any) -> Branches:
    return branches(layout, **options)


def pool_of(source: Branches, **options: Any) -> Pool:
    return Pool(LocalEngine(source.model, 256), options.pop("settings", SETTINGS), **options)


def tree_of(source: Branches, folder: Any) -> BranchTree:
    return BranchTree.open(folder, source.model.fingerprint)


def chain_with(source: Branches, *words: str, hinted: bool = False) -> Chain:
    """The first sampled chain that has all these words and no aside."""
    for seed in range(2000):
        chain = chain_of(source, seed, hinted)
        text = source.model.decode(chain.trace.ids)
        if all(word in text for word in words) and " Aside" not in text:
            return chain
    raise LookupError(words)
