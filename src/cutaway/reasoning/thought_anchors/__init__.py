"""Thought anchors (Bogdan et al. 2025, arXiv 2506.19143): the sentences of a trace that decide its answer."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

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

__getattr__ = on_demand(__name__)
