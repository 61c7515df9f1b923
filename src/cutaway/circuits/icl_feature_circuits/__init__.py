"""In-context learning as features: what detects a task in the examples, what executes it at the arrow.

The method's own functions live in `task_vectors`, `cleaning`, `steering` and `feature_graph`; they need torch.
"""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.icl_feature_circuits.data import (
        Checked,
        Prompt,
        Prompts,
        Split,
        Task,
        few_shot,
        prepare,
        single_token,
        split,
        zero_shot,
    )

__all__ = [
    "Checked",
    "Prompt",
    "Prompts",
    "Split",
    "Task",
    "few_shot",
    "prepare",
    "single_token",
    "split",
    "zero_shot",
]

__getattr__ = on_demand(__name__)
