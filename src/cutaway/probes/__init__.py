"""Monitors that read activations: from a linear probe to polynomials that are paid for only where needed."""

from cutaway.probes.activations import Pooled, activations, running

__all__ = ["Pooled", "activations", "running"]
