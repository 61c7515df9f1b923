"""The ledger: every run, what it depended on and what it found; append-only, and checked again on demand."""

from cutaway.ledger.claims import (
    Claim,
    Prediction,
    add_claim,
    add_critique,
    add_prediction,
    claims,
    predictions,
)
from cutaway.ledger.connect import default_url
from cutaway.ledger.export import export
from cutaway.ledger.ledger import Ledger, compare
from cutaway.ledger.recheck import recheck, record
from cutaway.ledger.records import ArtifactRecord, Change, Comparison, Recheck, RunRecord

__all__ = [
    "ArtifactRecord",
    "Change",
    "Claim",
    "Comparison",
    "Ledger",
    "Prediction",
    "Recheck",
    "RunRecord",
    "add_claim",
    "add_critique",
    "add_prediction",
    "claims",
    "compare",
    "default_url",
    "export",
    "predictions",
    "recheck",
    "record",
]
