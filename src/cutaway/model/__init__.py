"""Load language models, name what is inside them, capture it and change it."""

from cutaway.model.catalogue import Entry, catalogue
from cutaway.model.load import load_model
from cutaway.model.model import Batch, Model

__all__ = ["Batch", "Entry", "Model", "catalogue", "load_model"]
