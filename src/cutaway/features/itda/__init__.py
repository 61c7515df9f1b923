"""ITDA: sparse dictionaries of real activations, built in minutes, whose atoms name themselves."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

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

__getattr__ = on_demand(__name__)
