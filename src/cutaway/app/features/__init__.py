"""Pages and JSON API over a feature index: look units up, search them by token, read them on a text of your own."""

from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from cutaway.app.features.api import api_router
from cutaway.app.features.pages import pages_router
from cutaway.features.index import FeatureIndex, open_index
from cutaway.features.index.live import Live

if TYPE_CHECKING:
    from cutaway.model import Model

__all__ = ["router"]


def router(
    index: FeatureIndex | Path | str,
    model: "Model | None" = None,
    lock: AbstractContextManager[Any] | None = None,
) -> APIRouter:
    """Return the routes of an index (or its folder): pages under ``/features``, JSON under ``/api/features``.

    With ``model``, texts can be tried live; ``lock`` is held while it runs, for an app that uses it elsewhere, too.
    CutawayError for a folder that holds no whole index, UsageError for a model of another shape.
    """
    opened = index if isinstance(index, FeatureIndex) else open_index(index)
    live = None if model is None else Live(opened, model, lock or Lock())
    if live is not None:
        _ = live.readers  # a model that does not fit is refused here and not at the first text
    made = APIRouter()
    made.include_router(api_router(opened, live))
    made.include_router(pages_router(opened, live))
    return made
