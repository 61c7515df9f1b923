"""Public names that are imported when first asked for, so that ``import cutaway`` and a list of studies stay light."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import getsource
from typing import Any


def on_demand(package: str) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``: it imports what the package's ``if TYPE_CHECKING:`` block names.

    One list serves type checkers, readers and the import. AttributeError for any other name.
    """
    places: dict[str, tuple[str, str]] = {}

    def find(name: str) -> Any:
        # `inspect` asks modules for such names, also on behalf of getsource.
        special = name.startswith("__")
        if not places and not special:
            places.update(_named(getsource(sys.modules[package])))
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, inside = places[name]
        return getattr(import_module(module), inside)

    return find


def _named(source: str) -> dict[str, tuple[str, str]]:
    blocks = [each for each in ast.parse(source).body if isinstance(each, ast.If)]
    imports = [each for block in blocks for each in block.body if isinstance(each, ast.ImportFrom)]
    return {each.asname or each.name: (line.module or "", each.name) for line in imports for each in line.names}
