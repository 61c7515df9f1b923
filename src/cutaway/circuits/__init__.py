"""Find, run, score and draw circuits: which connections between which parts of a model carry a behaviour."""
