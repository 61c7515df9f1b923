"""Take knowledge out of a model, and test whether it is gone."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.editing.rows import Edit, Feature, RowEdit, applied, load_edit, rewritten
    from cutaway.editing.weights import Neurons, driving, masks, prune, written

__all__ = [
    "Edit",
    "Feature",
    "Neurons",
    "RowEdit",
    "applied",
    "driving",
    "load_edit",
    "masks",
    "prune",
    "rewritten",
    "written",
]

__getattr__ = on_demand(__name__)
