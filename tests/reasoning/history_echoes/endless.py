"""Run as a program and killed by test_dialogue.py: many dialogues of the planted model, kept in a tree on disk.

It takes one thing from its command line: the folder of the tree.
"""

import sys
from pathlib import Path

from cutaway.planted.echo import echo
from cutaway.reasoning.history_echoes import Chat, Dialogues, plan_dialogues, run_dialogues
from cutaway.reasoning.history_echoes.calibration import STYLE, style_items
from cutaway.reasoning.history_echoes.engine import DialogueEngine
from cutaway.sampling import BranchTree, Cost, Settings

DIALOGUES, TURNS = 20, 12
ANSWERS = DIALOGUES * (TURNS - 1)


def dialogues(folder: Path) -> tuple[Dialogues, Cost]:
    """What is found, and what it cost this time."""
    planted = echo(0.6, spread=1.0)
    engine = DialogueEngine(planted.model, 5)
    plan = plan_dialogues(style_items(planted), DIALOGUES, TURNS, "shuffled", seed=0)
    with BranchTree.open(folder, engine.identity) as tree:
        chat = Chat(planted.model, engine, Settings(1.0, 1.0, 0, 2), tree=tree)
        return run_dialogues(chat, plan, STYLE, width=5), engine.cost


if __name__ == "__main__":
    dialogues(Path(sys.argv[1]))
