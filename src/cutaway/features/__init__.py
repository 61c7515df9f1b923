"""From activations to features a person can search, read and check."""

from cutaway.features.dictionary import Codes, Dictionary
from cutaway.features.sparse import SparseDictionary, load_dictionary

__all__ = ["Codes", "Dictionary", "SparseDictionary", "load_dictionary"]
