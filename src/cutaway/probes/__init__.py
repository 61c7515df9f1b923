"""Monitors that read activations: from a linear probe to polynomials that are paid for only where needed."""

from typing import TYPE_CHECKING

from cutaway.lazy import on_demand

if TYPE_CHECKING:
    from cutaway.probes.linear import LinearProbe, fit_probe, load_probe
    from cutaway.probes.pooled import Pooled, activations, running

__all__ = ["LinearProbe", "Pooled", "activations", "fit_probe", "load_probe", "running"]

__getattr__ = on_demand(__name__)
