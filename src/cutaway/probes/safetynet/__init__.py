"""Anomaly detectors over what a model does inside, fitted on normal prompts only (2505.14300)."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.probes.safetynet.detectors import Detector, fit_detector, fit_detectors
    from cutaway.probes.safetynet.ensemble import Ensemble, fit_ensemble, published_alarms
    from cutaway.probes.safetynet.evasion import Hide, Move, move
    from cutaway.probes.safetynet.method import Detection, PromptSets, Reading, detect, obeys
    from cutaway.probes.safetynet.signals import attention_summaries, read_signals, score_matrix

__all__ = [
    "Detection",
    "Detector",
    "Ensemble",
    "Hide",
    "Move",
    "PromptSets",
    "Reading",
    "attention_summaries",
    "detect",
    "fit_detector",
    "fit_detectors",
    "fit_ensemble",
    "move",
    "obeys",
    "published_alarms",
    "read_signals",
    "score_matrix",
]

__getattr__ = on_demand(__name__)
