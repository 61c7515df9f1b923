"""From activations to features a person can search, read and check."""

from cutaway.features.dictionary import Codes, Dictionary
from cutaway.features.sparse import SparseDictionary, load_dictionary
from cutaway.features.train import TrainConfig, Trained
from cutaway.features.train import train as train_dictionary

__all__ = ["Codes", "Dictionary", "SparseDictionary", "TrainConfig", "Trained", "load_dictionary", "train_dictionary"]
