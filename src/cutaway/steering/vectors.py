"""Steering vectors: one direction a layer from contrasted texts, with controls of equal length.

1. Texts come in two kinds. The vector of layer l is the mean activation of the first kind less that of the second, at
   ``resid_post.l`` and at a stated token position of each text. With ``paired`` the texts are contrast pairs; the mean
   difference is the same, but both sides must be of equal number and no pair may be of two equal texts.
2. Norms: a vector is kept as it came out ("raw"). `Vectors.unit` brings each layer's to length 1; `Vectors.in_stream`
   to the length of the stream itself there (median over the texts), so that one strength means the same at any layer.
3. A control is a Gaussian direction brought, at each layer, to the length of the vector it stands against.
4. `Vectors.edits` gives `Add` edits: data that any engine applies, at all positions unless told otherwise.

Sources: cards eval-awareness (2510.20487) and k-steering (2505.24535, the CAA baseline). Trap avoided: a vector is
added where it was read, at the output of the same block.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.errors import CutawayError, UsageError
from cutaway.model import Add, Model, Positions

KIND = "resid_post"
_ROWS = 16
"""Texts in one forward."""
Ids = Sequence[int]
"""Token ids of one text."""


@dataclass(frozen=True, eq=False, repr=False)
class Vectors:
    """One vector for each of some layers, to be added to ``resid_post`` there."""

    layers: tuple[int, ...]
    values: Float[Tensor, "layer d_model"]
    stream: Float[Tensor, " layer"]
    """Typical length (median over the texts) of the stream at the same positions."""
    source: str
    """Fingerprint of the weights that the activations came from."""
    n: int
    """Texts of the first kind; pairs where they came in pairs."""
    position: str = "-1"
    """The token of each text that was read."""

    def __repr__(self) -> str:
        shares = ", ".join(f"{float(v):.2g}" for v in self.values.norm(dim=-1) / self.stream)
        return f"Vectors(layers {list(self.layers)}, {shares} of the stream's length, n={self.n})"

    @property
    def norms(self) -> Float[Tensor, " layer"]:
        """Length of each layer's vector."""
        return self.values.norm(dim=-1)

    @property
    def unit(self) -> "Vectors":
        """The same directions at length 1."""
        return replace(self, values=self.values / self.norms[:, None])

    @property
    def in_stream(self) -> "Vectors":
        """The same directions at the stream's own length."""
        return replace(self, values=self.values * (self.stream / self.norms)[:, None])

    def at(self, layers: Sequence[int]) -> "Vectors":
        """The vectors of ``layers`` alone; UsageError for one that is not there."""
        if missing := [layer for layer in layers if layer not in self.layers]:
            raise UsageError(f"layer {missing[0]}: there are vectors for {', '.join(map(str, self.layers))}")
        rows = [self.layers.index(layer) for layer in layers]
        return replace(self, layers=tuple(layers), values=self.values[rows], stream=self.stream[rows])

    def edits(self, scale: float = 1.0, positions: Positions = None) -> tuple[Add, ...]:
        """Add ``scale`` times each vector at its layer; none for a scale of 0."""
        if scale == 0:
            return ()
        vectors = zip(self.layers, self.values, strict=True)
        return tuple(Add(f"{KIND}.{layer}", vector.clone(), float(scale), positions) for layer, vector in vectors)

    def controls(self, n: int = 20, seed: int = 0) -> tuple["Vectors", ...]:
        """``n`` sets of random directions, each of the same length as this one's at every layer."""
        if n < 1:
            raise UsageError(f"n={n}: at least 1 control; 20 or more to compare with")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(n, *self.values.shape, generator=generator, dtype=torch.float64)
        matched = drawn / drawn.norm(dim=-1, keepdim=True) * self.values.double().norm(dim=-1)[:, None]
        return tuple(replace(self, values=each.to(self.values.dtype)) for each in matched)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file."""
        from safetensors.torch import save_file

        about = {name: getattr(self, name) for name in ("layers", "source", "n", "position")}
        tensors = {"values": self.values.contiguous(), "stream": self.stream.contiguous()}
        save_file(tensors, path, {"vectors": json.dumps(about)})


def load_vectors(path: str | Path) -> Vectors:
    """Read what `Vectors.save` wrote; CutawayError for a file that is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["vectors"])
            tensors = {name: file.get_tensor(name) for name in ("values", "stream")}
        return Vectors(**{**about, "layers": tuple(about["layers"])}, **tensors)
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CutawayError(f"{Path(path).name} holds no vectors written by Vectors.save: {error}") from error


def difference_of_means(
    model: Model,
    positive: Sequence[Ids],
    negative: Sequence[Ids],
    layers: Sequence[int],
    *,
    position: int = -1,
    paired: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Vectors:
    """Return mean(positive) - mean(negative) at the output of each of ``layers``, at one token of each text.

    ``position`` is counted within a text, -1 the last. Raises UsageError for no texts, layers the model does not have,
    pairs of unequal number or of two equal texts, and sides whose means are the same (there is no direction then).
    """
    chosen = check_layers(layers, model.n_layers)
    if not positive or not negative:
        raise UsageError(f"{len(positive)} texts of one kind and {len(negative)} of the other: at least one of each")
    if paired:
        check_pairs(positive, negative)
    total = len(positive) + len(negative)
    first = states(model, positive, chosen, position, lambda done: report(done, total))
    second = states(model, negative, chosen, position, lambda done: report(len(positive) + done, total))
    values = (first.double().mean(1) - second.double().mean(1)).float()
    stream = torch.cat([first, second], 1).norm(dim=-1).median(-1).values
    for layer, norm, typical in zip(chosen, values.norm(dim=-1), stream, strict=True):
        if not norm > 1e-6 * typical:
            raise UsageError(f"layer {layer}: both kinds of text have the same mean; a zero vector steers nothing")
    return Vectors(chosen, values, stream, model.fingerprint, len(positive), str(position))


@torch.no_grad()
def states(
    model: Model,
    texts: Sequence[Ids],
    layers: Sequence[int],
    position: int = -1,
    report: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "layer text d_model"]:
    """Return ``resid_post`` of ``layers`` at one token of each text, in fp32 on the CPU; what is kept is that alone."""
    sites = [f"{KIND}.{layer}" for layer in layers]
    kept: list[Tensor] = []
    for at in range(0, len(texts), _ROWS):
        rows = texts[at : at + _ROWS]
        found = model.capture(model.batch([list(row) for row in rows]), sites, position, special=True)
        kept.append(torch.stack([found[site][:, 0].float().cpu() for site in sites]))
        report(min(at + _ROWS, len(texts)))
    return torch.cat(kept, 1)


def check_layers(layers: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Return ``layers`` as a tuple; UsageError for none, one twice, or one the model does not have."""
    if not layers or len(set(layers)) < len(layers):
        raise UsageError(f"layers={list(layers)}: name at least one, each once")
    if bad := [layer for layer in layers if not 0 <= layer < n_layers]:
        raise UsageError(f"layer {bad[0]}: the model has 0..{n_layers - 1}")
    return tuple(layers)


def check_pairs(positive: Sequence[object], negative: Sequence[object]) -> None:
    """Raise UsageError unless the two sides pair up and no pair is of two equal members."""
    if len(positive) != len(negative):
        raise UsageError(f"{len(positive)} first members and {len(negative)} second ones; pairs need one of each")
    for place, (one, other) in enumerate(zip(positive, negative, strict=True)):
        if one == other:
            raise UsageError(f"pair {place}: both members are the same text, so they contrast nothing")
