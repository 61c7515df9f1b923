"""GGUF files, read once: de-quantised to a safetensors checkpoint that later loads map straight from disk.

The checkpoint lies under the cache home in a folder named by the GGUF's SHA-256. It is written beside its
place and renamed into it, so a reader sees a whole checkpoint or none, and two processes do not collide.
"""

import contextlib
import importlib.util
import io
import mmap
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cutaway.errors import CutawayError
from cutaway.model.catalogue import Entry, digest, verify
from cutaway.model.quiet import quiet

_UNREADABLE = (ValueError, KeyError, IndexError, RuntimeError, NotImplementedError, struct.error)
"""What the reader raises on a file that is cut short, not a GGUF, or of an architecture it does not know."""

_STALE_SECONDS = 3600.0
"""A partial folder this old belongs to a conversion that was killed."""

_DIGIT_SPLITTERS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva"})
"""Values of ``tokenizer.ggml.pre`` whose tokenizer splits digits off before anything else."""


def cache_home() -> Path:
    """Return CUTAWAY_HOME, else XDG_CACHE_HOME/cutaway, else ~/.cache/cutaway."""
    if home := os.environ.get("CUTAWAY_HOME"):
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cutaway"


def checkpoint_of(source: Path | Entry) -> Path:
    """Return the directory of the de-quantised checkpoint of a GGUF file or entry, made where missing."""
    if isinstance(source, Entry):
        pieces, sha = source.paths(), source.sha256
        verify(pieces, sha, source.name)
    else:
        pieces = (source,)
        sha = digest(pieces)
    home = cache_home() / "models"
    final = home / sha
    if not (final / "config.json").is_file():
        _convert(pieces, home, final)
    return final


def _convert(pieces: tuple[Path, ...], home: Path, final: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise CutawayError(f"reading {pieces[0].name} needs the gguf package; run: pip install gguf")
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
    except OSError as error:
        raise CutawayError(
            f"cannot write to the cache {home}: {error.strerror}; set CUTAWAY_HOME to a folder with room"
        ) from error
    try:
        _write(_joined(pieces, partial), partial / "checkpoint")
        _publish(partial / "checkpoint", final)
    except (OSError, SafetensorError) as error:
        raise CutawayError(
            f"cannot convert {pieces[0].name} into {home}: {_line(error)}; needs about"
            f" {_need(pieces)} MB of room there, or set CUTAWAY_HOME to another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(gguf: Path, target: Path) -> None:
    try:
        model, tokenizer = _read(gguf), _tokenizer(gguf)
    except _UNREADABLE as error:
        raise CutawayError(
            f"{gguf.name} is damaged, or of a kind this version of transformers cannot read: {_line(error)}"
        ) from error
    with quiet():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _read(gguf: Path) -> Any:
    """Return the file's model with dense fp32 weights in the modules its config names."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.utils.quantization_config import GgufConfig

    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # its own bar asks no one
        read = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    read.config.name_or_path = ""
    with no_init_weights():
        model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    return model


def _tokenizer(gguf: Path) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if _pretokenizer(gguf) in _DIGIT_SPLITTERS:
        # transformers gives all such files GPT-2's rule, under which "\n\n1" loses its "\n\n" token
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _pretokenizer(gguf: Path) -> str:
    """Return the file's ``tokenizer.ggml.pre``, or nothing. Found by its bytes: a whole parse takes seconds."""
    key = b"tokenizer.ggml.pre"
    marker = struct.pack("<Q", len(key)) + key + struct.pack("<I", 8)  # 8: the value is a string
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(marker)
        if at < 0:
            return ""
        start = at + len(marker) + 8
        (length,) = struct.unpack("<Q", data[start - 8 : start])
        return data[start : start + length].decode()


def _publish(checkpoint: Path, final: Path) -> None:
    try:
        checkpoint.rename(final)
    except OSError:
        if not (final / "config.json").is_file():  # otherwise another process was first, with the same bytes
            raise


def _joined(pieces: tuple[Path, ...], folder: Path) -> Path:
    if len(pieces) == 1:
        return pieces[0]
    whole = folder / "weights.gguf"
    with whole.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, out, 1 << 22)
    return whole


def _sweep(home: Path) -> None:
    for partial in home.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # its own process may have just finished with it
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _need(pieces: tuple[Path, ...]) -> int:
    return sum(piece.stat().st_size for piece in pieces) * 8 // 1_000_000


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
