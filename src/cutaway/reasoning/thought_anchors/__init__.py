"""Thought anchors (Bogdan et al. 2025, arXiv 2506.19143): the sentences of a trace that decide its answer."""

from cutaway.reasoning.thought_anchors.method import explain_answer, find_anchors
from cutaway.reasoning.thought_anchors.result import AnchorMap

__all__ = ["AnchorMap", "explain_answer", "find_anchors"]
