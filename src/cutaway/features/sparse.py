"""Sparse autoencoders and transcoders: one module for every published encoder.

    pre    = W_enc (normalise(x) - b_dec) + b_enc         b_dec is subtracted where ``subtract_bias`` says so
    values = relu(pre)                                    relu
             the k largest of relu(pre)                   topk
             pre where pre > threshold, else 0            jumprelu; a trained BatchTopK is one, with one threshold
             relu(magnitude) where pre > 0, else 0        gated: magnitude = W_enc (...) * exp(r_mag) + b_mag
    x_hat  = denormalise(W_dec^T values + b_dec (+ W_skip x))

Sources: peers page of dictionaries, section 2 (formats) and its cards. Norms of atoms are folded into the encoder
when a dictionary of another tool is read, and say so in its settings.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.features.dictionary import Codes, Provenance, check_model, sparse

if TYPE_CHECKING:
    from cutaway.model import Model

Activation = Literal["relu", "topk", "jumprelu", "gated"]
Normaliser = Literal["none", "scale", "layer_norm", "row_norm"]
"""``scale`` multiplies by one constant, ``layer_norm`` centres and scales each row, ``row_norm`` brings each row to
length sqrt(d_in); the decoder undoes each."""
_BY_ROW = ("layer_norm", "row_norm")
SCHEMA = 1
_FILE, _TENSORS = "dictionary.json", "dictionary.safetensors"
_EPS = 1e-5


class SparseDictionary(nn.Module):
    """Atoms with a one-layer encoder; see the module's formulae.

    w_enc: [latent d_in]; w_dec: [latent d_out]; b_dec: [d_out]; threshold and gates: [latent].
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        activation: Activation | str = "topk",
        *,
        k: int = 32,
        d_out: int | None = None,
        skip: bool = False,
        subtract_bias: bool = True,
        normaliser: Normaliser | str = "none",
        provenance: Provenance | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        for name, value, allowed in (("activation", activation, Activation), ("normaliser", normaliser, Normaliser)):
            if value not in get_args(allowed):
                raise UsageError(f"{name}={value!r}{nearest(str(value), get_args(allowed))}")
        if min(d_in, d_out, n_latents) < 1:
            raise UsageError(f"a dictionary of {n_latents} latents from {d_in} to {d_out} dimensions: all 1 or more")
        if activation == "topk" and not 1 <= k <= n_latents:
            raise UsageError(f"k={k}: 1 to {n_latents}, the number of latents")
        if normaliser in _BY_ROW and d_in != d_out:
            raise UsageError(
                f"normaliser={normaliser!r}: the output of another width cannot undo it; pass none or scale"
            )
        if subtract_bias and d_in != d_out:
            raise UsageError("subtract_bias: a transcoder's output bias has no meaning at its input; pass False")
        self.activation, self.k, self.subtract_bias, self.normaliser = (
            str(activation),
            k,
            subtract_bias,
            str(normaliser),
        )
        self.provenance = provenance or Provenance()
        generator = torch.Generator().manual_seed(seed)
        atoms = torch.randn(n_latents, d_out, generator=generator)
        atoms = atoms / atoms.norm(dim=-1, keepdim=True)
        mirrored = atoms.clone() if d_in == d_out else torch.randn(n_latents, d_in, generator=generator) / d_in**0.5
        self.w_dec, self.w_enc = nn.Parameter(atoms), nn.Parameter(mirrored)
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(n_latents)), nn.Parameter(torch.zeros(d_out))
        self.threshold = nn.Parameter(torch.zeros(n_latents)) if activation == "jumprelu" else None
        self.r_mag = nn.Parameter(torch.zeros(n_latents)) if activation == "gated" else None
        self.b_mag = nn.Parameter(torch.zeros(n_latents)) if activation == "gated" else None
        self.w_skip = nn.Parameter(torch.zeros(d_out, d_in)) if skip else None
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def __repr__(self) -> str:
        kind = f"topk {self.k}" if self.activation == "topk" else self.activation
        at = f" at {self.provenance.site}" if self.provenance.site else ""
        return f"SparseDictionary({self.n_latents} latents, d {self.d_in}, {kind}{at})"

    @property
    def n_latents(self) -> int:
        return self.w_dec.shape[0]

    @property
    def d_in(self) -> int:
        return self.w_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.w_dec.shape[1]

    @property
    def atoms(self) -> Float[Tensor, "latent d_out"]:
        """What each latent adds to the output at value 1, in the units of the site (norms of each row aside)."""
        return self.w_dec / self.scale if self.normaliser == "scale" else self.w_dec

    def pre(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row latent"]:
        """Return the encoder's output before the activation function."""
        return self._linear(self._normalised(x)) + self.b_enc

    def activate(self, pre: Float[Tensor, "row latent"], x: Float[Tensor, "row d_in"] | None = None) -> Tensor:
        """Return the latents' values given `pre`, every latent in its column; ``x`` is needed by gated encoders."""
        if self.activation == "relu":
            return pre.relu()
        if self.activation == "topk":
            top = pre.relu().topk(self.k, dim=-1)
            return torch.zeros_like(pre).scatter(1, top.indices, top.values)
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return pre * (pre > self.threshold)
        assert self.r_mag is not None
        assert self.b_mag is not None
        if x is None:
            raise UsageError("a gated encoder needs the rows themselves: activate(pre, x)")
        magnitude = self._linear(self._normalised(x)) * self.r_mag.exp() + self.b_mag
        return magnitude.relu() * (pre > 0)

    def dense(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row latent"]:
        """Return the values of all latents; differentiable."""
        self._check(x)
        return self.activate(self.pre(x), x)

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Return the active latents of each row; UsageError for rows of another width or with NaN."""
        self._check(x)
        if self.activation == "topk":
            top = self.pre(x).relu().topk(self.k, dim=-1)
            return Codes(top.indices, top.values, self.n_latents)
        return sparse(self.dense(x))

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Return the activations that codes stand for; a skip connection or a norm of each row needs the rows ``x``."""
        if codes.n_latents != self.n_latents:
            raise UsageError(f"codes of {codes.n_latents} latents; this dictionary has {self.n_latents}")
        out = nn.functional.embedding_bag(
            codes.indices, self.w_dec, per_sample_weights=codes.values.to(self.w_dec.dtype), mode="sum"
        )
        return self._finish(out + self.b_dec, x)

    def forward(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
        """Return the reconstruction of ``x``; of a transcoder, its prediction of the target site."""
        return self.decode(self.encode(x), x)

    def save(self, folder: str | Path) -> None:
        """Write ``dictionary.json`` and ``dictionary.safetensors`` into ``folder``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in self.state_dict().items()}, folder / _TENSORS)
        (folder / _FILE).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tensors."""
        shape = {"d_in": self.d_in, "n_latents": self.n_latents, "d_out": self.d_out}
        how = {name: getattr(self, name) for name in ("activation", "k", "subtract_bias", "normaliser")}
        return {
            "schema": SCHEMA,
            "kind": "sparse",
            **shape,
            **how,
            "skip": self.w_skip is not None,
            "provenance": asdict(self.provenance),
        }

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.d_in:
            raise UsageError(f"rows of {x.shape[-1]} dimensions; this dictionary reads {self.d_in}")
        if not bool(torch.isfinite(x).all()):
            raise UsageError("activations contain NaN or infinity")

    def _normalised(self, x: Tensor) -> Tensor:
        if self.normaliser == "scale":
            return x * self.scale
        if self.normaliser == "layer_norm":
            return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + _EPS)
        if self.normaliser == "row_norm":
            return x / self._length(x)
        return x

    def _length(self, x: Tensor) -> Tensor:
        """Of each row, over sqrt(d_in)."""
        return x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / self.d_in**0.5

    def _linear(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x - self.b_dec if self.subtract_bias else x, self.w_enc)

    def _finish(self, out: Tensor, x: Tensor | None) -> Tensor:
        if self.w_skip is not None or self.normaliser in _BY_ROW:
            if x is None:
                raise UsageError("this dictionary needs the rows it decodes: decode(codes, x)")
            if self.w_skip is not None:
                out = out + nn.functional.linear(self._normalised(x), self.w_skip)
        if self.normaliser == "scale":
            return out / self.scale
        if self.normaliser == "layer_norm":
            assert x is not None
            return out * (x.std(-1, keepdim=True) + _EPS) + x.mean(-1, keepdim=True)
        if self.normaliser == "row_norm":
            assert x is not None
            return out * self._length(x)
        return out


def load_dictionary(folder: str | Path, model: "Model | None" = None) -> SparseDictionary:
    """Read what `SparseDictionary.save` wrote and, with ``model``, check that it belongs to it.

    CutawayError where files are missing, damaged or do not fit; UsageError for a model of other width or weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        state = load_file(folder / _TENSORS)
        made = SparseDictionary(
            **{name: about[name] for name in ("d_in", "n_latents", "activation", "k", "d_out", "skip")},
            subtract_bias=about["subtract_bias"],
            normaliser=about["normaliser"],
            provenance=Provenance(**about["provenance"]),
        )
        made.load_state_dict(state)
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise CutawayError(f"{folder} holds no dictionary written by Cutaway: {error}") from error
    if model is not None:
        check_model(made, model)
    return made.requires_grad_(False)
