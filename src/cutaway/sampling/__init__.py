"""Sampling: token ids in, token ids out. Engines, the branch tree on disk, traces and their sentences."""

from typing import TYPE_CHECKING, Any

from cutaway.sampling.sentences import split_text, split_tokens, without_end_mark
from cutaway.sampling.trace import Trace, make_trace
from cutaway.sampling.types import Cost, Engine, Request, Rollout, Settings

if TYPE_CHECKING:
    from cutaway.sampling.local import LocalEngine
    from cutaway.sampling.openai import OpenAIEngine
    from cutaway.sampling.tree import BranchTree, sample

__all__ = [
    "BranchTree",
    "Cost",
    "Engine",
    "LocalEngine",
    "OpenAIEngine",
    "Request",
    "Rollout",
    "Settings",
    "Trace",
    "make_trace",
    "sample",
    "split_text",
    "split_tokens",
    "without_end_mark",
]

_HEAVY = {
    "BranchTree": "cutaway.sampling.tree",
    "LocalEngine": "cutaway.sampling.local",
    "OpenAIEngine": "cutaway.sampling.openai",
    "sample": "cutaway.sampling.tree",
}


def __getattr__(name: str) -> Any:
    # The types must be importable without torch: studies and the ledger use them.
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HEAVY[name]), name)
