"""Monitors that read activations: from a linear probe to polynomials that are paid for only where needed."""

from cutaway.probes.activations import Pooled, activations, running
from cutaway.probes.linear import LinearProbe, fit_probe, load_probe

__all__ = ["LinearProbe", "Pooled", "activations", "fit_probe", "load_probe", "running"]
