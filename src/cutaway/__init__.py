"""Cutaway: open a language model, explain one answer, keep the finding."""

__version__ = "0.1.0"
