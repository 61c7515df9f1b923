"""The endpoint with 8 clients at once, against the local engine's own batch and against `transformers serve`.

SmolLM2-135M-Instruct, fp32, chat prompts of different lengths, up to 64 tokens each (24 with ``--quick``); figures are
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

CLIENTS, TOKENS, QUICK_TOKENS = 8, 64, 24
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


def main() -> None:
    given = options(__doc__)
    repeats, most = (2, QUICK_TOKENS) if given.quick else (5, TOKENS)
    model = load_model(NAME, dtype="float32")
    engine = LocalEngine(model, CLIENTS)
    here = psutil.Process()
    prompts = [tuple(model.chat_ids(question)) for question in QUESTIONS]
    settings = Settings(temperature=1.0, top_p=1.0, max_tokens=most)

    def local(repeat: int) -> int:
        requests = [Request(prompt, (max(repeat, 0) * CLIENTS + i,), settings) for i, prompt in enumerate(prompts)]
        return sum(len(rollout.ids) for _, rollout in engine.stream(requests))

    generator = torch.Generator().manual_seed(0)
    site = f"resid_post.{model.n_layers // 2}"
    vector = torch.randn(model.d_model, generator=generator)
    edits = [{"edit": "Add", "site": site, "vector": vector.tolist(), "scale": 0.01}]
    monitors = [
        {"name": f"m{layer}", "site": f"resid_post.{layer}", "direction": vector.tolist()} for layer in (5, 15, 25)
    ]
    ours = [sys.executable, "-m", "cutaway.cli.main", "serve", "--model", NAME, "--dtype", "float32"]
    folder = str(model.hf.config.name_or_path)
    command = os.environ.get("CUTAWAY_SERVE", str(Path(sys.executable).with_name("transformers")))
    peer = [command, "serve", folder, "--dtype", "float32", "--device", "cpu"]
    sides: dict[str, tuple[Callable[[int], int], psutil.Process]] = {"local": (local, here)}
    with contextlib.ExitStack() as stack:
        url, process = stack.enter_context(served(ours, "/v1/models"))
        theirs, their_process = stack.enter_context(served(peer, "/health"))
        sides["endpoint"] = (lambda repeat: crowd(url, NAME, most, repeat), process)
        sides["streamed"] = (lambda repeat: crowd(url, NAME, most, repeat, stream=True), process)
        sides["monitored"] = (lambda repeat: crowd(url, NAME, most, repeat, {"monitors": monitors}), process)
        sides["steered"] = (lambda repeat: crowd(url, NAME, most, repeat, {"edits": edits}), process)
        sides["peer"] = (lambda repeat: crowd(theirs, folder, most, repeat, stream=True), their_process)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for name, (side, _) in sides.items():
            side(0)
            print("warm:", name, file=sys.stderr)
        for repeat in range(repeats):
            for name, (side, whose) in list(sides.items())[:: 1 if repeat % 2 == 0 else -1]:
                found[name].append(timed(side, repeat, whose))

    def ratio(a: str, b: str, clock: str) -> list[float]:
        return [x[clock] / y[clock] for x, y in zip(found[a], found[b], strict=True)]

    claims = []
    for clock in ("wall", "cpu"):
        claims += [
            claim(f"endpoint, {CLIENTS} clients, tokens a second ({clock})", "the local engine's batch",
                  ratio("endpoint", "local", clock), bar=0.8, at_least=True),
            claim(f"endpoint, streamed, tokens a second ({clock})", "the local engine's batch",
                  ratio("streamed", "local", clock)),
            claim(f"endpoint, {CLIENTS} clients, tokens a second ({clock})", "transformers serve, streamed",
                  ratio("streamed", "peer", clock), bar=2.0, at_least=True),
            claim(f"three probes score every token: time a token ({clock})", "the endpoint, plain",
                  ratio("endpoint", "monitored", clock), bar=1.05),
            claim(f"one steered layer: time a token ({clock})", "the endpoint, plain",
                  ratio("endpoint", "steered", clock), bar=1.15),
        ]  # fmt: skip
    report(given, claims, tokens_a_second=found, clients=CLIENTS, tokens=most)


if __name__ == "__main__":
    main()
