"""Thought Branches (Macar et al. 2025, arXiv 2510.27484): which stated reasons act, and which only accompany."""

from cutaway.reasoning.thought_branches.chain import Chain, Effect, Pool
from cutaway.reasoning.thought_branches.importance import Importance, importance
from cutaway.reasoning.thought_branches.resilience import Resilience, Run, resilience

__all__ = ["Chain", "Effect", "Importance", "Pool", "Resilience", "Run", "importance", "resilience"]
