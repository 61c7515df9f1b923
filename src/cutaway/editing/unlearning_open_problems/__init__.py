"""An audit of unlearning: is it gone, or only silent?"""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.editing.unlearning_open_problems.checks import Sets, Settings
    from cutaway.editing.unlearning_open_problems.method import CAPPED, Audit, Row, audit, verdict

__all__ = ["CAPPED", "Audit", "Row", "Sets", "Settings", "audit", "verdict"]

__getattr__ = on_demand(__name__)
