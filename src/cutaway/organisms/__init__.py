"""Models trained to have a known, harmless quirk, and what is learnt from watching them get it."""
