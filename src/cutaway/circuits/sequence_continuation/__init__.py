"""Sequence continuation: the circuits that continue lists, and how far they are one.

The method's own functions live in `method`, `edges`, `roles` and `transfer`; they need torch.
"""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.sequence_continuation.data import (
        Checked,
        Prompt,
        Rows,
        generate,
        other_tasks,
        prepare,
        read_prompts,
        whole_words,
    )
    from cutaway.circuits.sequence_continuation.result import EdgeCircuit, NodeCircuit, SequenceStudy, Transfer

__all__ = [
    "Checked",
    "EdgeCircuit",
    "NodeCircuit",
    "Prompt",
    "Rows",
    "SequenceStudy",
    "Transfer",
    "generate",
    "other_tasks",
    "prepare",
    "read_prompts",
    "whole_words",
]

__getattr__ = on_demand(__name__)
