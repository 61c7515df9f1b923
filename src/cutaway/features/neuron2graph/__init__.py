"""Neuron to graph: a feature as token patterns that predict where it fires."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.features.neuron2graph.graph import Ending, NeuronGraph, Node, Overlap, Trie, gap_summary, overlap
    from cutaway.features.neuron2graph.method import Fitted, fit
    from cutaway.features.neuron2graph.scores import Score, judge, lookups, score
    from cutaway.features.neuron2graph.snippets import (
        listed,
        mask_tokens,
        nearest_tokens,
        next_tokens,
        read,
    )
    from cutaway.features.neuron2graph.steps import Pruned, Saliency, Settings, Snippet, prune, published, saliency
    from cutaway.features.neuron2graph.svg import draw
    from cutaway.features.neuron2graph.tokens import normalise, speller
    from cutaway.features.neuron2graph.variants import vary
    from cutaway.features.windows import start_tokens, windows

__all__ = [
    "Ending",
    "Fitted",
    "NeuronGraph",
    "Node",
    "Overlap",
    "Pruned",
    "Saliency",
    "Score",
    "Settings",
    "Snippet",
    "Trie",
    "draw",
    "fit",
    "gap_summary",
    "judge",
    "listed",
    "lookups",
    "mask_tokens",
    "nearest_tokens",
    "next_tokens",
    "normalise",
    "overlap",
    "prune",
    "published",
    "read",
    "saliency",
    "score",
    "speller",
    "start_tokens",
    "vary",
    "windows",
]

__getattr__ = on_demand(__name__)
