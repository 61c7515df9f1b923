"""An audit of unlearning: is it gone, or only silent?"""

from cutaway.editing.unlearning_open_problems.checks import Sets, Settings
from cutaway.editing.unlearning_open_problems.method import CAPPED, Audit, Row, audit, verdict

__all__ = ["CAPPED", "Audit", "Row", "Sets", "Settings", "audit", "verdict"]
