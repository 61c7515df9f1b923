"""Cutaway: open a language model, explain one answer, keep the finding."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.model import Model, load_model
    from cutaway.reasoning.thought_anchors import AnchorMap, explain_answer
    from cutaway.study import Lab, get_study, studies

__version__ = "0.1.0"

__all__ = ["AnchorMap", "Lab", "Model", "explain_answer", "get_study", "load_model", "studies"]

__getattr__ = on_demand(__name__)
