"""Load language models, name what is inside them, capture it and change it."""

from cutaway.model.capture import Activations
from cutaway.model.catalogue import Entry, catalogue
from cutaway.model.edits import (
    Add,
    AttentionBias,
    AttentionMask,
    Edit,
    EditError,
    Mask,
    Patch,
    Positions,
    Project,
    Replace,
    Scale,
    load_edits,
    save_edits,
)
from cutaway.model.families import Layout
from cutaway.model.gguf import cache_home
from cutaway.model.load import load_model
from cutaway.model.model import Batch, Model
from cutaway.model.sites import Site, parse

__all__ = [
    "Activations",
    "Add",
    "AttentionBias",
    "AttentionMask",
    "Batch",
    "Edit",
    "EditError",
    "Entry",
    "Layout",
    "Mask",
    "Model",
    "Patch",
    "Positions",
    "Project",
    "Replace",
    "Scale",
    "Site",
    "cache_home",
    "catalogue",
    "load_edits",
    "load_model",
    "parse",
    "save_edits",
]
