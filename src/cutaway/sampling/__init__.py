"""Sampling: token ids in, token ids out. Engines, the branch tree on disk, traces and their sentences."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand
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

__getattr__ = on_demand(__name__)
