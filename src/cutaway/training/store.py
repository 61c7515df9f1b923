"""Trained adapters kept under what they were trained from: whoever asks for the same training finds it done.

The key is a digest of the base weights and of everything the training depends on. A folder holds the adapter in PEFT's
form (`save_adapter`) and ``about.json``, written last: what the key was made of, versions, and a note of the training.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError
from cutaway.model import Model
from cutaway.training.checkpoint import versions
from cutaway.training.lora import base_fingerprint, load_adapter, save_adapter

_ABOUT = "about.json"


def adapter_key(name: str, model: Model, about: Mapping[str, Any]) -> str:
    """Return a folder's name for what is trained on ``model`` by ``about``: settings, digests of data, seeds."""
    body = json.dumps([model.fingerprint, about], sort_keys=True)
    return f"{name}-{hashlib.sha256(body.encode()).hexdigest()[:16]}"


def keep_adapter(model: Model, folder: Path, about: Mapping[str, Any], note: Mapping[str, Any] | None = None) -> Model:
    """Write the adapters of ``model`` with where they come from; return the model as `kept_adapter` does."""
    save_adapter(model, folder / "adapter")
    body = {"base": base_fingerprint(model), "about": about, "versions": versions(), "note": note or {}}
    fresh = folder / f"{_ABOUT}.new"
    fresh.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(folder / _ABOUT)
    return _at_rest(model)


def kept_adapter(model: Model, folder: Path) -> tuple[Model, dict[str, Any]] | None:
    """Return ``model`` with the adapters kept in ``folder``, frozen, and their note; None where none are.

    The given model shares its modules: drop it. Raises CutawayError for files that are damaged or of other weights.
    """
    path = folder / _ABOUT
    if not path.exists():
        return None
    try:
        note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["note"]
    except (ValueError, KeyError) as error:
        raise CutawayError(f"{path} cannot be read: {error}; delete {folder.name} to train again") from error
    return _at_rest(load_adapter(model, folder / "adapter")), note


def _at_rest(model: Model) -> Model:
    model.hf.eval().requires_grad_(False)
    # A model of its own: its fingerprint is taken of the weights as they are now.
    return Model(model.hf, model.tokenizer, name=model.name, spec=model.spec)
