"""Find, run, score and draw circuits: which connections between which parts of a model carry a behaviour."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.attribution import Settings, attribute
    from cutaway.circuits.comparison import Comparison, Transfer, compare, transfer
    from cutaway.circuits.curves import Curve, curve
    from cutaway.circuits.draw import svg
    from cutaway.circuits.evaluation import Evaluation, evaluate, find
    from cutaway.circuits.graph import CircuitGraph, Header
    from cutaway.circuits.items import Items, Split, attribute_all, split
    from cutaway.circuits.knockout import Completeness, Minimality, completeness, minimality
    from cutaway.circuits.mib import read_mib, write_mib
    from cutaway.circuits.pairs import Pair, Pairs, by_length
    from cutaway.circuits.parts import Anatomy, anatomy
    from cutaway.circuits.patch import run
    from cutaway.circuits.record import Record, reference
    from cutaway.circuits.score import Faithfulness, faithfulness, ndf, nfs
    from cutaway.circuits.select import (
        fitted,
        greedy,
        nested,
        prune,
        random_mask,
        randomised,
        shuffled,
        smallest,
        threshold,
        top,
    )
    from cutaway.circuits.tasks import Task, capitals, from_rows, greater_than, ioi
    from cutaway.circuits.view import CircuitView, SizeCurve, circuit_view
    from cutaway.circuits.wiring import Wiring

__all__ = [
    "Anatomy",
    "CircuitGraph",
    "CircuitView",
    "Comparison",
    "Completeness",
    "Curve",
    "Evaluation",
    "Faithfulness",
    "Header",
    "Items",
    "Minimality",
    "Pair",
    "Pairs",
    "Record",
    "Settings",
    "SizeCurve",
    "Split",
    "Task",
    "Transfer",
    "Wiring",
    "anatomy",
    "attribute",
    "attribute_all",
    "by_length",
    "capitals",
    "circuit_view",
    "compare",
    "completeness",
    "curve",
    "evaluate",
    "faithfulness",
    "find",
    "fitted",
    "from_rows",
    "greater_than",
    "greedy",
    "ioi",
    "minimality",
    "ndf",
    "nested",
    "nfs",
    "prune",
    "random_mask",
    "randomised",
    "read_mib",
    "reference",
    "run",
    "shuffled",
    "smallest",
    "split",
    "svg",
    "threshold",
    "top",
    "transfer",
    "write_mib",
]

__getattr__ = on_demand(__name__)
