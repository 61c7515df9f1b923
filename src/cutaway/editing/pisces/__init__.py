"""Erase a concept from the weights by rewriting the MLP rows that write its features."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.editing.pisces.erasing import Erased, Scores, erase, find_features, scores, useful
    from cutaway.editing.pisces.method import (
        candidates,
        make_edit,
        random_control,
        shuffled_control,
        signs,
        word_dictionary,
        word_features,
    )
    from cutaway.editing.pisces.searching import Judged, Search, harmonic, read_ratings, search

__all__ = [
    "Erased",
    "Judged",
    "Scores",
    "Search",
    "candidates",
    "erase",
    "find_features",
    "harmonic",
    "make_edit",
    "random_control",
    "read_ratings",
    "scores",
    "search",
    "shuffled_control",
    "signs",
    "useful",
    "word_dictionary",
    "word_features",
]

__getattr__ = on_demand(__name__)
