"""How the units of an index are read from its model: neurons as they are, latents through their dictionary."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.features.dictionary import Dictionary
from cutaway.features.index.store import Source
from cutaway.model import Model
from cutaway.model.capture import Activations

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
RESERVED = ("all", "search", "fires", "static", "compare")
"""Words of addresses, which no dictionary may be named."""


@dataclass(frozen=True)
class Reader:
    """How a source's activations come out of captured ones."""

    source: Source
    dictionary: Dictionary | None = None

    @property
    def digest(self) -> str:
        """Of the dictionary's atoms; empty for neurons."""
        if self.dictionary is None:
            return ""
        atoms = self.dictionary.atoms.detach().cpu().float().contiguous()
        return hashlib.sha256(atoms.numpy().tobytes()).hexdigest()[:16]

    def values(self, found: Activations) -> Tensor:
        """Return [batch pos unit]; at tokens outside the mask a dictionary's latents are 0."""
        held = found[self.source.site]
        if self.dictionary is None:
            return held.float()
        rows = held[found.mask].flatten(1).float()
        out = torch.zeros(*found.mask.shape, self.source.units, device=held.device)
        if len(rows):
            out[found.mask] = self.dictionary.encode(rows).dense()
        return out


def readers_of(model: Model, sources: Sequence[Source], dictionaries: Mapping[str, Dictionary]) -> list[Reader]:
    """Return how each source of an index is read from ``model``; a dictionary that is not at hand is left out."""
    neurons = [Reader(each) for each in sources if each.kind == "neurons"]
    return neurons + [Reader(each, dictionaries[each.name]) for each in sources if each.name in dictionaries]


def plan_readers(model: Model, layers: Sequence[int], dictionaries: Mapping[str, Dictionary]) -> list[Reader]:
    made: list[Reader] = []
    first = 0
    for layer in sorted(set(layers)):
        if not 0 <= layer < model.n_layers:
            raise UsageError(f"layer {layer}: {model.name} has 0 to {model.n_layers - 1}")
        made.append(Reader(Source(str(layer), "neurons", f"neurons.{layer}", model.layout.dims("neurons")[0], first)))
        first += made[-1].source.units
    for name, each in dictionaries.items():
        if (
            name in RESERVED
            or name.lstrip("-").isdecimal()
            or not name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        ):
            raise UsageError(
                f"dictionary {name!r}: letters, digits, '-', '_' and '.', no number alone, none of {RESERVED}"
            )
        site = each.provenance.site
        if not site:
            raise UsageError(f"dictionary {name!r} does not say where it reads (provenance.site)")
        if each.provenance.fingerprint not in ("", model.fingerprint):
            raise UsageError(f"dictionary {name!r} was trained on {each.provenance.model!r} with other weights")
        made.append(Reader(Source(name, "dictionary", site, each.n_latents, first), each))
        first += each.n_latents
    if not made:
        raise UsageError("nothing to index: no layers and no dictionaries")
    return made
