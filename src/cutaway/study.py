"""The study contract: one published system as a typed config, ``run`` and ``calibrate``.

A study wires a method to a model and to data. It returns plain `Findings`; whoever called it (the command line,
a notebook, `cutaway.ledger`) decides what to keep. Studies register themselves by decorating their class with
`study`; the id is the file name of the system's card.
"""
