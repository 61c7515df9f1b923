"""ITDA: sparse dictionaries of real activations, built in minutes, whose atoms name themselves."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.features.itda.atoms import Atom, AtomDictionary, load_atoms
    from cutaway.features.itda.method import Builder, Built, build, cosine_of, error_of
    from cutaway.features.itda.pursuit import pursue, pursue_directly
    from cutaway.features.itda.similarity import Matching, cka, jaccard, jaccard_by_text, match_layers, relative, svcca

__all__ = [
    "Atom",
    "AtomDictionary",
    "Builder",
    "Built",
    "Matching",
    "build",
    "cka",
    "cosine_of",
    "error_of",
    "jaccard",
    "jaccard_by_text",
    "load_atoms",
    "match_layers",
    "pursue",
    "pursue_directly",
    "relative",
    "svcca",
]

_PLACES = {
    "Atom": ("atoms", "Atom"),
    "AtomDictionary": ("atoms", "AtomDictionary"),
    "load_atoms": ("atoms", "load_atoms"),
    "Builder": ("method", "Builder"),
    "Built": ("method", "Built"),
    "build": ("method", "build"),
    "cosine_of": ("method", "cosine_of"),
    "error_of": ("method", "error_of"),
    "pursue": ("pursuit", "pursue"),
    "pursue_directly": ("pursuit", "pursue_directly"),
    "Matching": ("similarity", "Matching"),
    "cka": ("similarity", "cka"),
    "jaccard": ("similarity", "jaccard"),
    "jaccard_by_text": ("similarity", "jaccard_by_text"),
    "match_layers": ("similarity", "match_layers"),
    "relative": ("similarity", "relative"),
    "svcca": ("similarity", "svcca"),
}
"""Public name to the module and the name it has there: studies are listed without what the methods import."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, inside = _PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), inside)
