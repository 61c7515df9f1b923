"""CoT monitorability (Korbak, Balesni et al. 2025, arXiv 2507.11473): how far a monitor can read what a model did."""

from cutaway.reasoning.cot_monitorability.gate import Gate, gate
from cutaway.reasoning.cot_monitorability.method import Monitorability, Sample, evaluate, read, score
from cutaway.reasoning.cot_monitorability.monitors import (
    ACTION,
    BOTH,
    CHAIN,
    Monitor,
    Reading,
    RuleMonitor,
    Scope,
    Verdict,
    cue_rule,
    monitor_track,
)

__all__ = [
    "ACTION",
    "BOTH",
    "CHAIN",
    "Gate",
    "Monitor",
    "Monitorability",
    "Reading",
    "RuleMonitor",
    "Sample",
    "Scope",
    "Verdict",
    "cue_rule",
    "evaluate",
    "gate",
    "monitor_track",
    "read",
    "score",
]
