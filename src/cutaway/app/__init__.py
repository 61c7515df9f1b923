"""The web app: runs to browse, a playground, and a steered or monitored model behind the OpenAI protocol."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.app.create import create_app, serve
    from cutaway.app.guard import Access, access
    from cutaway.app.pages import Pages

__all__ = ["Access", "Pages", "access", "create_app", "serve"]

_PLACES = {
    "Access": "guard",
    "Pages": "pages",
    "access": "guard",
    "create_app": "create",
    "serve": "create",
}
"""Imported when first asked for: without the web packages, `cutaway serve` says which to install."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
