"""Files of tensors: named by their content, mapped into memory and never read as a whole."""

import hashlib
import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import CutawayError

Arrays = Mapping[str, np.ndarray]
_TYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "|u1", "BOOL": "|b1"}


def write_arrays(folder: Path, stem: str, arrays: Arrays) -> dict[str, Any]:
    """Write ``stem-HASH.safetensors`` and return its name and size; a file that is there already is left alone."""
    from safetensors.numpy import save_file

    draft = folder / f"{stem}.draft"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, draft)
    with draft.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = folder / f"{stem}-{digest[:16]}.safetensors"
    draft.replace(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return a safetensors file's arrays without reading them; CutawayError for a missing or damaged file."""
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(view[:8], "little")
        header = json.loads(view[8:start])
        header.pop("__metadata__", None)
        return {name: _array(view, start, about) for name, about in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CutawayError(f"{path} is missing or damaged: {error}") from error


def _array(view: mmap.mmap, start: int, about: Mapping[str, Any]) -> np.ndarray:
    kind, shape = np.dtype(_TYPES[about["dtype"]]), about["shape"]
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.zeros(shape, kind)
    return np.frombuffer(view, kind, count, start + about["data_offsets"][0]).reshape(shape)


def offsets(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return where each of several lists of these lengths begins, end to end, and where the last ends."""
    found = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=found[1:])
    return found
