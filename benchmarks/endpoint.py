"""The endpoint with 8 clients at once, against the local engine's own batch and against `transformers serve`.

SmolLM2-135M-Instruct, fp32, chat prompts of different lengths, up to 64 tokens each (16 with ``--quick``); figures are
tokens a second. Both servers are processes of their own; the clients are threads here. `CUTAWAY_SERVE` names the
`transformers` command, where it is not beside this interpreter.

    python benchmarks/endpoint.py [--quick] [--out FILE.json]
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import socket
from typing import Any

import httpx2
import psutil
import torch
from timing import claim, options, report

from cutaway.model import load_model
from cutaway.sampling import LocalEngine, Request, Settings

CLIENTS, TOKENS, QUICK_TOKENS = 8, 64, 16
NAME = "smollm2-135m-instruct"
QUESTIONS = [f"Tell me {'something ' * (i % 3)}about the number {i} and why people like it." for i in range(CLIENTS)]


@contextlib.contextmanager
def served(command: list[str], path: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server on a free port, wait until ``path`` answers, end it afterwards."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx2.HTTPError):
                if httpx2.get(url + path, timeout=5).status_code < 500:
                    break
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}")
            time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def ask(url: str, model: str, question: str, seed: int, most: int, field: dict[str, Any] | None, stream: bool) -> int:
    """One client's request; returns the tokens it got."""
    body: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": question}], "max_tokens": most,
        "temperature": 1.0, "top_p": 1.0, "seed": seed, "stream": stream,
    }  # fmt: skip
    if field is not None:
        body["cutaway"] = field
    if not stream:
        answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=600)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])
    count = 0
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                count += any(choice["delta"].get("content") for choice in json.loads(line[6:])["choices"])
    return count


def crowd(
    url: str, model: str, most: int, repeat: int, field: dict[str, Any] | None = None, stream: bool = False
) -> int:
    """All clients at once, each with up to ``most`` tokens."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [
            pool.submit(ask, url, model, QUESTIONS[i], repeat * CLIENTS + i, most, field, stream)
            for i in range(CLIENTS)
        ]
        return sum(each.result() for each in asked)


def timed(side: Callable[[int], int], repeat: int, process: psutil.Process) -> dict[str, float]:
    """Tokens a second of wall clock, and of the processor time of whoever decodes."""
    before, start = process.cpu_times(), time.perf_counter()
    tokens = side(repeat)
    wall, after = time.perf_counter() - start, process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return {"tokens": tokens, "wall": tokens / wall, "cpu": tokens / max(cpu, 1e-9)}


Sides = dict[str, tuple[Callable[[int], int], psutil.Process]]
Found = dict[str, list[dict[str, float]]]


def measured(sides: Sides, repeats: int) -> Found:
    """Every side once a repeat, in turning order, after a warm-up of each."""
    found: Found = {name: [] for name in sides}
    for side, _ in sides.values():
        side(0)
    for repeat in range(repeats):
        for name, (side, whose) in list(sides.items())[:: 1 if repeat % 2 == 0 else -1]:
            found[name].append(timed(side, repeat, whose))
    rounded = {
        name: {clock: [round(x[clock], 1) for x in runs] for clock in ("wall", "cpu")} for name, runs in found.items()
    }
    print("tokens a second:", rounded, flush=True)
    return found


def ratio(found: Found, a: str, b: str, clock: str) -> list[float]:
    """Tokens a second of ``a`` over those of ``b``, repeat by repeat."""
    return [x[clock] / y[clock] for x, y in zip(found[a], found[b], strict=True)]


def main() -> None:
    given = options(__doc__)
    repeats, most = (1, QUICK_TOKENS) if given.quick else (3, TOKENS)
    model = load_model(NAME, dtype="float32")
    engine = LocalEngine(model, CLIENTS)
    prompts = [tuple(model.chat_ids(question)) for question in QUESTIONS]
    settings = Settings(temperature=1.0, top_p=1.0, max_tokens=most)

    def local(repeat: int) -> int:
        requests = [Request(prompt, (max(repeat, 0) * CLIENTS + i,), settings) for i, prompt in enumerate(prompts)]
        return sum(len(rollout.ids) for _, rollout in engine.stream(requests))

    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).tolist()
    edits = {"edits": [{"edit": "Add", "site": f"resid_post.{model.n_layers // 2}", "vector": vector, "scale": 0.01}]}
    probes = [{"name": f"m{layer}", "site": f"resid_post.{layer}", "direction": vector} for layer in (5, 15, 25)]
    ours = [sys.executable, "-m", "cutaway.cli.main", "serve", "--model", NAME, "--dtype", "float32"]
    folder = str(model.hf.config.name_or_path)
    command = os.environ.get("CUTAWAY_SERVE", str(Path(sys.executable).with_name("transformers")))
    peer = [command, "serve", folder, "--dtype", "float32", "--device", "cpu"]
    with served(ours, "/v1/models") as (url, process):
        streamed = (lambda repeat: crowd(url, NAME, most, repeat, stream=True), process)
        alone = measured(
            {
                "local": (local, psutil.Process()),
                "endpoint": (lambda repeat: crowd(url, NAME, most, repeat), process),
                "streamed": streamed,
                "monitored": (lambda repeat: crowd(url, NAME, most, repeat, {"monitors": probes}), process),
                "steered": (lambda repeat: crowd(url, NAME, most, repeat, edits), process),
            },
            repeats,
        )
        with served(peer, "/health") as (theirs, their_process):
            asked = (lambda repeat: crowd(theirs, folder, most, repeat, stream=True), their_process)
            beside = measured({"streamed": streamed, "peer": asked}, repeats)
    claims = []
    for clock in ("wall", "cpu"):
        claims += [
            claim(f"endpoint, {CLIENTS} clients, tokens a second ({clock})", "the local engine's batch",
                  ratio(alone, "endpoint", "local", clock), bar=0.8, at_least=True),
            claim(f"endpoint, streamed, tokens a second ({clock})", "the local engine's batch",
                  ratio(alone, "streamed", "local", clock)),
            claim(f"endpoint, {CLIENTS} clients, tokens a second ({clock})", "transformers serve, streamed",
                  ratio(beside, "streamed", "peer", clock), bar=2.0, at_least=True),
            claim(f"three probes score every token: time a token ({clock})", "the endpoint, plain",
                  ratio(alone, "endpoint", "monitored", clock), bar=1.05),
            claim(f"one steered layer: time a token ({clock})", "the endpoint, plain",
                  ratio(alone, "endpoint", "steered", clock), bar=1.15),
        ]  # fmt: skip
    report(given, claims, tokens_a_second={"alone": alone, "beside the peer": beside}, clients=CLIENTS, tokens=most)


if __name__ == "__main__":
    main()
