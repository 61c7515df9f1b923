"""Arguments and processes that several tests of the command share."""

import os
import subprocess
import sys
from pathlib import Path

from cutaway.planted import Reasoner

OUTCOME = r"regex:The answer is (\d)"


def question(planted: Reasoner, model: object, *more: object, **options: object) -> list[object]:
    """The arguments of a small `explain`."""
    given = {"outcome": OUTCOME, "max_tokens": 60, "tokens": 300, "embedder": "", "dtype": "float32", **options}
    flags = [part for k, v in given.items() for part in (f"--{k.replace('_', '-')}", v)]
    return ["explain", planted.prompt, "--model", model, "--raw", *flags, *more]


def start(home: Path, arguments: list[object]) -> "subprocess.Popen[str]":
    """The command as a process of its own."""
    environment = {**os.environ, "CUTAWAY_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cutaway.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
