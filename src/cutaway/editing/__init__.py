"""Take knowledge out of a model, and test whether it is gone."""

from cutaway.editing.weights import Neurons, copy_of, driving, masks, prune, written

__all__ = ["Neurons", "copy_of", "driving", "masks", "prune", "written"]
