"""Cutaway: open a language model, explain one answer, keep the finding."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.model import Model, load_model
    from cutaway.reasoning.thought_anchors import AnchorMap, explain_answer
    from cutaway.study import Lab, get_study, studies

__version__ = "0.1.0"

__all__ = ["AnchorMap", "Lab", "Model", "explain_answer", "get_study", "load_model", "studies"]

_HOME = {
    "AnchorMap": "cutaway.reasoning.thought_anchors",
    "Lab": "cutaway.study",
    "Model": "cutaway.model",
    "explain_answer": "cutaway.reasoning.thought_anchors",
    "get_study": "cutaway.study",
    "load_model": "cutaway.model",
    "studies": "cutaway.study",
}


def __getattr__(name: str) -> Any:
    # `import cutaway` must stay light: torch and transformers load with the first name that needs them.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
