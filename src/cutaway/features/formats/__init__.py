"""Dictionaries of other tools: SAELens, sparsify and dictionary_learning directories, read and written.

Which axis is which comes from the format, never from a tensor's shape, so that a dictionary with as many latents as
dimensions is read rightly; every shape is checked against the configuration. Encoders that every tool computes alike
become a `SparseDictionary`; what it cannot compute is refused by name.

Norms of atoms are folded into the encoder when a dictionary is read (values times the norm, atoms divided by it),
and ``provenance.settings["norms"]`` says what happened: ``unit`` (they were 1 already), ``folded``, or ``kept``: a
TopK chooses its latents before the norm counts, so folding would change which are active.

Sources: peers page of dictionaries, section 2.
"""

from pathlib import Path
from typing import Literal, get_args

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.formats.dictionary_learning import read_dictionary_learning, write_dictionary_learning
from cutaway.features.formats.saelens import read_saelens, write_saelens
from cutaway.features.formats.sparsify import read_sparsify, write_sparsify
from cutaway.features.sparse import SparseDictionary, load_dictionary

__all__ = [
    "read_dictionary",
    "read_dictionary_learning",
    "read_saelens",
    "read_sparsify",
    "write_dictionary",
    "write_dictionary_learning",
    "write_saelens",
    "write_sparsify",
]
Format = Literal["saelens", "sparsify", "dictionary_learning"]


def read_dictionary(folder: str | Path, *, fold: bool = True, scale: float | None = None) -> SparseDictionary:
    """Read a dictionary's folder, whichever tool wrote it; see `read_saelens` for ``scale``."""
    folder = Path(folder)
    if (folder / "dictionary.json").exists():
        return load_dictionary(folder)
    if (folder / "sae_weights.safetensors").exists():
        return read_saelens(folder, fold=fold, scale=scale)
    if (folder / "sae.safetensors").exists():
        return read_sparsify(folder)
    if (folder / "ae.pt").exists():
        return read_dictionary_learning(folder, fold=fold)
    raise CutawayError(
        f"{folder} holds no dictionary: expected dictionary.json (Cutaway), sae_weights.safetensors (SAELens),"
        " sae.safetensors (sparsify) or ae.pt (dictionary_learning)"
    )


def write_dictionary(dictionary: SparseDictionary, folder: str | Path, format: Format | str, hook: str = "") -> None:
    """Write ``dictionary`` as another tool's folder; ``hook`` names the place where its site has no name there."""
    writers = {
        "saelens": write_saelens,
        "sparsify": write_sparsify,
        "dictionary_learning": write_dictionary_learning,
    }
    if format not in get_args(Format):
        raise UsageError(f"format={format!r}{nearest(format, writers)}")
    writers[format](dictionary, folder, hook=hook)
