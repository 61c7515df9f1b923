"""Trained models on disk: found and loaded, or trained, checkpointed and kept."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutaway.circuits.arithmetic import models
from cutaway.circuits.arithmetic.recipes import Recipe
from cutaway.circuits.arithmetic.training import Report, train
from cutaway.errors import CutawayError
from cutaway.model import Model


@dataclass(frozen=True)
class Stored:
    """A trained model with what its training left behind."""

    model: Model
    recipe: Recipe
    training: Mapping[str, Any]
    """As in `Trained.to_dict`: losses by bin, sets, hashes, seconds."""
    complete: bool


def obtain(
    recipe: Recipe,
    home: Path,
    *,
    device: str = "auto",
    report: Report = lambda done, total, loss: None,
) -> Stored:
    """The recipe's model from ``home``, trained first where it is not there; goes on from a checkpoint.

    A model initialised from an addition model obtains that one the same way. Incomplete when stopped by Ctrl-C.
    """
    folder = home / f"{recipe.name}-s{recipe.seed}-{recipe.digest[:8]}"
    if not (folder / "training.json").is_file():
        parent = None
        if recipe.parent is not None:
            stored = obtain(recipe.parent, home, device=device, report=report)
            if not stored.complete:
                return stored
            parent = stored.model
        checkpoint = folder.with_suffix(".safetensors")
        trained = train(recipe, parent=parent, device=device, checkpoint=checkpoint, report=report)
        if not trained.complete:
            return Stored(trained.model, recipe, trained.to_dict(), False)
        trained.save(folder)
        checkpoint.unlink()
    return open_folder(folder, recipe, device)


def open_folder(folder: Path, recipe: Recipe | None = None, device: str = "auto") -> Stored:
    """Load a folder written by `Trained.save`; CutawayError when it is of another recipe or was changed."""
    try:
        training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in training["recipe"].items()}
        own = Recipe(**fields)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CutawayError(f"{folder} holds no trained arithmetic model ({error}); train one first") from error
    if recipe is not None and own.digest != recipe.digest:
        raise CutawayError(f"{folder} is of another recipe than {recipe.name!r}; give another folder")
    model = models.load(folder, own.format)
    model.hf.to(models.pick_device(device))
    return Stored(model, own, training, bool(training["complete"]))
