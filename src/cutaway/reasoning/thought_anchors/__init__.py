"""Thought anchors (Bogdan et al. 2025, arXiv 2506.19143): the sentences of a trace that decide its answer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.reasoning.thought_anchors.ablation import head_ablation
    from cutaway.reasoning.thought_anchors.importance import ImportanceTable, measure_importance
    from cutaway.reasoning.thought_anchors.influence import Influence, measure_influence
    from cutaway.reasoning.thought_anchors.method import explain_answer, find_anchors
    from cutaway.reasoning.thought_anchors.published import PublishedTrace, load_published
    from cutaway.reasoning.thought_anchors.receivers import ReceiverResult, receiver_heads
    from cutaway.reasoning.thought_anchors.result import AnchorMap, anchors_view
    from cutaway.reasoning.thought_anchors.suppression import SuppressionMatrix, suppression_matrix
    from cutaway.reasoning.thought_anchors.taxonomy import label_sentences

_HOME = {
    "AnchorMap": "result",
    "ImportanceTable": "importance",
    "Influence": "influence",
    "PublishedTrace": "published",
    "ReceiverResult": "receivers",
    "SuppressionMatrix": "suppression",
    "anchors_view": "result",
    "explain_answer": "method",
    "find_anchors": "method",
    "head_ablation": "ablation",
    "label_sentences": "taxonomy",
    "load_published": "published",
    "measure_importance": "importance",
    "measure_influence": "influence",
    "receiver_heads": "receivers",
    "suppression_matrix": "suppression",
}

__all__ = [
    "AnchorMap",
    "ImportanceTable",
    "Influence",
    "PublishedTrace",
    "ReceiverResult",
    "SuppressionMatrix",
    "anchors_view",
    "explain_answer",
    "find_anchors",
    "head_ablation",
    "label_sentences",
    "load_published",
    "measure_importance",
    "measure_influence",
    "receiver_heads",
    "suppression_matrix",
]


def __getattr__(name: str) -> Any:
    # Reading published traces needs no torch, and torch takes seconds to import.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
