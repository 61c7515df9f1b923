"""Other people's tools against a real server, each in an environment of its own, named by a variable.

``CUTAWAY_INSPECT_PYTHON`` and ``CUTAWAY_GARAK_PYTHON`` are interpreters that have ``inspect-ai`` and ``garak``.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from clients import GARAK, INSPECT
from served import Running, settle


def run(variable: str, program: str, folder: Path, *arguments: str) -> str:
    interpreter = os.environ.get(variable)
    if interpreter is None:
        pytest.skip(f"set {variable} to an interpreter that has the tool")
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "OPENAICOMPATIBLE_API_KEY": "any"}
    done = subprocess.run(
        [interpreter, "-c", program, *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow  # needs another environment
@pytest.mark.parametrize("name", ["tiny", "tiny+steered"])
def test_inspect_evaluates_a_plain_and_a_steered_model(server: Running, tmp_path: Path, name: str) -> None:
    out = run("CUTAWAY_INSPECT_PYTHON", INSPECT, tmp_path, f"{server.url}/v1", name, str(tmp_path))
    lines = out.strip().splitlines()[-2:]
    for line in lines:
        _, logprobs, tokens = line.rsplit(" ", 2)
        assert logprobs == tokens
        assert 1 <= int(tokens) <= 20
    again = run("CUTAWAY_INSPECT_PYTHON", INSPECT, tmp_path, f"{server.url}/v1", name, str(tmp_path))
    assert again.strip().splitlines()[-2:] == lines  # the seed travels
    settle(server.service)


@pytest.mark.slow  # needs another environment
@pytest.mark.parametrize("name", ["tiny", "tiny+steered"])
def test_garak_probes_a_plain_and_a_steered_model(server: Running, tmp_path: Path, name: str) -> None:
    run("CUTAWAY_GARAK_PYTHON", GARAK, tmp_path, f"{server.url}/v1", name)
    report = [json.loads(line) for line in (tmp_path / "report.report.jsonl").read_text().splitlines()]
    attempts = [each for each in report if each["entry_type"] == "attempt" and each["status"] == 2]
    assert len(attempts) >= 1
    outputs = [output for each in attempts for output in each["outputs"]]
    assert len(outputs) == 3 * len(attempts)
    assert all(output is not None for output in outputs)
    settle(server.service)
