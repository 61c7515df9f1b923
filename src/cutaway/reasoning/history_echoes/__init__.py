"""History echoes: does one hallucinated, refused or flattering turn make the next one likelier?"""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.reasoning.history_echoes.data import Item, plan_dialogues, qa_items, select_items
    from cutaway.reasoning.history_echoes.dialogue import (
        Asked,
        Chat,
        Dialogues,
        capture_answers,
        chat_tokens,
        run_dialogues,
    )
    from cutaway.reasoning.history_echoes.forced import (
        Arm,
        Contrast,
        ForcedResult,
        contrasts,
        effect,
        make_targets,
        run_forced,
    )
    from cutaway.reasoning.history_echoes.geometry import Geometry, measure_geometry
    from cutaway.reasoning.history_echoes.link import Link, angle_link
    from cutaway.reasoning.history_echoes.markov import Stickiness, measure_stickiness
    from cutaway.reasoning.history_echoes.phenomena import PHENOMENA, Phenomenon, get_phenomenon
    from cutaway.reasoning.history_echoes.separation import trapped_signal

__all__ = [
    "PHENOMENA",
    "Arm",
    "Asked",
    "Chat",
    "Contrast",
    "Dialogues",
    "ForcedResult",
    "Geometry",
    "Item",
    "Link",
    "Phenomenon",
    "Stickiness",
    "angle_link",
    "capture_answers",
    "chat_tokens",
    "contrasts",
    "effect",
    "get_phenomenon",
    "make_targets",
    "measure_geometry",
    "measure_stickiness",
    "plan_dialogues",
    "qa_items",
    "run_dialogues",
    "run_forced",
    "select_items",
    "trapped_signal",
]

__getattr__ = on_demand(__name__)
