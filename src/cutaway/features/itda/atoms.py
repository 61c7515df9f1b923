"""A dictionary of chosen activations: each atom is the direction of a real activation and knows its token."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.errors import CutawayError, UsageError
from cutaway.features.dictionary import Codes, Provenance, check_model
from cutaway.features.itda.pursuit import pursue
from cutaway.features.sparse import SparseDictionary
from cutaway.model import Model

_FILE, _TENSORS = "dictionary.json", "dictionary.safetensors"
SCHEMA = 1


@dataclass(frozen=True)
class Atom:
    """Where an atom comes from."""

    label: str
    """Hash of the token ids up to and including its token: the same text gives the same label in any order."""
    document: int
    end: int
    """Where its token ends, in characters of the document; -1 where the tokenizer does not say."""
    before: str
    """Text in front of the token."""
    token: str

    def __str__(self) -> str:
        return f"{self.before}[[{self.token}]]"


@dataclass(frozen=True)
class AtomDictionary:
    """Atoms of unit norm with a matching-pursuit encoder; it has no bias. A `cutaway.features.Dictionary`."""

    atoms: Float[Tensor, "latent d_model"]
    names: tuple[Atom, ...]
    k: int
    cosine: float
    """A row was added where its reconstruction's cosine with it was below this."""
    tokenizer: str
    """Hash of the tokenizer's vocabulary: labels of different tokenizers cannot be compared."""
    provenance: Provenance
    variant: str = "matching"

    def __post_init__(self) -> None:
        if len(self.atoms) != len(self.names):
            raise UsageError(f"{len(self.atoms)} atoms and {len(self.names)} names; give one name for each")

    def __repr__(self) -> str:
        at = f" at {self.provenance.site}" if self.provenance.site else ""
        return f"AtomDictionary({self.n_latents} atoms, d {self.d_in}, k {self.k}{at})"

    @property
    def n_latents(self) -> int:
        return self.atoms.shape[0]

    @property
    def d_in(self) -> int:
        return self.atoms.shape[1]

    @property
    def tau(self) -> float:
        """The threshold in the paper's units, squared error of directions a dimension."""
        return 2 * (1 - self.cosine) / self.d_in

    @property
    def labels(self) -> frozenset[str]:
        """Every atom's label."""
        return frozenset(name.label for name in self.names)

    @cached_property
    def gram(self) -> Float[Tensor, "latent latent"]:
        """Products of all atoms; n^2 floats, 1 GB at 16,384."""
        return self.atoms @ self.atoms.T

    def encode(self, x: Float[Tensor, "row d_in"]) -> Codes:
        """Return the codes of each row; values may be negative."""
        return pursue(x, self.atoms, self.k, gram=self.gram, variant=self.variant)

    def decode(self, codes: Codes, x: Float[Tensor, "row d_in"] | None = None) -> Float[Tensor, "row d_out"]:
        """Return the sum of the coded atoms."""
        if codes.n_latents != self.n_latents:
            raise UsageError(f"codes of {codes.n_latents} latents; this dictionary has {self.n_latents}")
        if self.n_latents == 0:
            return torch.zeros(len(codes), self.d_in)
        return nn.functional.embedding_bag(
            codes.indices, self.atoms, per_sample_weights=codes.values.to(self.atoms.dtype), mode="sum"
        )

    def keep(self, atoms: Sequence[int]) -> "AtomDictionary":
        """Return the dictionary with these atoms only: without those that an evaluation found unused, say."""
        return replace(self, atoms=self.atoms[list(atoms)], names=tuple(self.names[i] for i in atoms))

    def check(self, model: Model) -> None:
        """UsageError where the dictionary does not belong to ``model``: another width, or other weights."""
        check_model(self, model)

    def to_sparse(self, k: int | None = None) -> SparseDictionary:
        """Return a TopK dictionary that starts from these atoms: a start for training, not the same codes."""
        made = SparseDictionary(
            self.d_in, self.n_latents, "topk", k=min(k or self.k, self.n_latents), provenance=self.provenance
        )
        with torch.no_grad():
            made.w_dec.copy_(self.atoms)
            made.w_enc.copy_(self.atoms)
        return made

    def save(self, folder: str | Path) -> None:
        """Write ``dictionary.json`` and ``dictionary.safetensors``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "schema": SCHEMA,
            "kind": "atoms",
            **{name: getattr(self, name) for name in ("k", "cosine", "tokenizer", "variant")},
            "provenance": asdict(self.provenance),
            "names": [asdict(name) for name in self.names],
        }
        save_file({"atoms": self.atoms.contiguous()}, folder / _TENSORS)
        (folder / _FILE).write_text(json.dumps(about, ensure_ascii=False) + "\n", encoding="utf-8")


def load_atoms(folder: str | Path, model: Model | None = None) -> AtomDictionary:
    """Read what `AtomDictionary.save` wrote and, with ``model``, check that it belongs to it.

    Raises CutawayError for missing or damaged files, UsageError for a model of other width or weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        if about["kind"] != "atoms":
            raise CutawayError(f"{folder} holds a dictionary of kind {about['kind']!r}, not one of atoms")
        made = AtomDictionary(
            load_file(folder / _TENSORS)["atoms"],
            tuple(Atom(**name) for name in about["names"]),
            **{name: about[name] for name in ("k", "cosine", "tokenizer", "variant")},
            provenance=Provenance(**about["provenance"]),
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise CutawayError(f"{folder} holds no dictionary of atoms: {error}") from error
    if model is not None:
        made.check(model)
    return made
