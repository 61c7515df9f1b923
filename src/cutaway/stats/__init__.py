"""Intervals, bands, confidence sequences, e-processes, false-discovery control, divergences, smoothing."""
