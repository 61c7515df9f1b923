"""Query circuits: for one prompt and one answer, the small part of the model that reproduces the decision."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.circuits.query_circuits.candidates import WAYS, Search, candidate_sets, exchanged, score_matrices
    from cutaway.circuits.query_circuits.choices import (
        Question,
        choice_pair,
        multiple_choice,
        read_questions,
    )
    from cutaway.circuits.query_circuits.data import Queries, Query, arithmetic, first_token, indirect_objects
    from cutaway.circuits.query_circuits.method import Place, place, search_circuits, search_query
    from cutaway.circuits.query_circuits.result import CHOSEN, QueryCircuits, Searched, areas, halfway
    from cutaway.circuits.query_circuits.wordings import leaks, rewordings

__all__ = [
    "CHOSEN",
    "WAYS",
    "Place",
    "Queries",
    "Query",
    "QueryCircuits",
    "Question",
    "Search",
    "Searched",
    "areas",
    "arithmetic",
    "candidate_sets",
    "choice_pair",
    "exchanged",
    "first_token",
    "halfway",
    "indirect_objects",
    "leaks",
    "multiple_choice",
    "place",
    "read_questions",
    "rewordings",
    "score_matrices",
    "search_circuits",
    "search_query",
]

__getattr__ = on_demand(__name__)
