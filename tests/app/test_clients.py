"""Other people's tools against a served SmolLM2, plain and steered, each in an environment of its own.

``CUTAWAY_INSPECT_PYTHON`` and ``CUTAWAY_GARAK_PYTHON`` are interpreters that have ``inspect-ai`` and ``garak``.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from clients import GARAK, INSPECT
from served import Running, running, settle

from cutaway.app import create_app
from cutaway.app.registry import Registry
from cutaway.model import Add, load_model
from cutaway.probes import LinearProbe

NAME = "smollm2-135m-instruct"
NAMES = pytest.mark.parametrize("name", [NAME, f"{NAME}+steered"])


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """SmolLM2 on a port of loopback, with a vector that steers it and a probe."""
    model = load_model(NAME, dtype="float32")
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    edits = {"steered": (Add("resid_post.12", vector, 1.0),)}
    registry = Registry({"up": vector}, edits, {"probe": LinearProbe(vector, 0.25, "resid_post.20")})
    ledger = f"sqlite:///{tmp_path_factory.mktemp('served') / 'ledger.db'}"
    with running(create_app(ledger, model=model, registry=registry)) as found:
        yield found


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


@pytest.mark.slow  # a real model
@NAMES
def test_the_official_client_talks_to_a_real_model(smol: Running, name: str) -> None:
    client = openai.OpenAI(base_url=f"{smol.url}/v1", api_key="any", max_retries=0)
    assert name in [each.id for each in client.models.list()]
    asked: Any = [{"role": "user", "content": "Name three colours."}]

    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model=name, messages=asked, max_tokens=24, seed=7, temperature=0.7, logprobs=True, top_logprobs=2,
            extra_body={"cutaway": {"monitors": ["probe"]}}, **more,
        )  # fmt: skip

    whole = ask(n=2)
    first = whole.choices[0]
    assert len(first.message.content.split()) > 2
    assert len(whole.cutaway["scores"][0]["scores"]["probe"]) == len(first.logprobs.content)
    assert whole.usage.completion_tokens == sum(len(each.logprobs.content) for each in whole.choices)
    assert ask(n=2).choices[0].message.content == first.message.content
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stream=True) if chunk.choices)
    assert streamed == first.message.content
    assert len(whole.cutaway["edits"]) == (name != NAME)
    settle(smol.service)


@pytest.mark.slow  # needs another environment
@NAMES
def test_inspect_evaluates_a_plain_and_a_steered_model(smol: Running, tmp_path: Path, name: str) -> None:
    out = run("CUTAWAY_INSPECT_PYTHON", INSPECT, tmp_path, f"{smol.url}/v1", name, str(tmp_path))
    lines = out.strip().splitlines()[-2:]
    for line in lines:
        _, logprobs, tokens = line.rsplit(" ", 2)
        assert logprobs == tokens
        assert 1 <= int(tokens) <= 20
    again = run("CUTAWAY_INSPECT_PYTHON", INSPECT, tmp_path, f"{smol.url}/v1", name, str(tmp_path))
    assert again.strip().splitlines()[-2:] == lines  # the seed travels
    settle(smol.service)


@pytest.mark.slow  # needs another environment
@NAMES
def test_garak_probes_a_plain_and_a_steered_model(smol: Running, tmp_path: Path, name: str) -> None:
    run("CUTAWAY_GARAK_PYTHON", GARAK, tmp_path, f"{smol.url}/v1", name)
    report = [json.loads(line) for line in (tmp_path / "report.report.jsonl").read_text().splitlines()]
    attempts = [each for each in report if each["entry_type"] == "attempt" and each["status"] == 2]
    assert len(attempts) >= 1
    outputs = [output for each in attempts for output in each["outputs"]]
    assert len(outputs) == 3 * len(attempts)
    assert all(output is not None for output in outputs)
    settle(smol.service)
