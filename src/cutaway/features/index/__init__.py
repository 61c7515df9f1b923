"""A searchable store of everything known about a model's units: top texts, graphs, logit effects, histograms."""

from cutaway.features.index.fill import FillConfig, fill
from cutaway.features.index.postings import Alike, Term
from cutaway.features.index.ready import Ready, ReadyConfig, build_ready, quick
from cutaway.features.index.store import FeatureIndex, Source, Text, add_notes, check_index, open_index

__all__ = [
    "Alike",
    "FeatureIndex",
    "FillConfig",
    "Ready",
    "ReadyConfig",
    "Source",
    "Term",
    "Text",
    "add_notes",
    "build_ready",
    "check_index",
    "fill",
    "open_index",
    "quick",
]
