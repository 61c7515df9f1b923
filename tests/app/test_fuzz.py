"""Random requests made from the OpenAPI document: nothing fails, nothing sticks, nothing leaks."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, openapi
from served import Running, settle

# schemathesis draws from the random module inside its own strategies.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

SECRET = "Xylophone"
"""Stands in prompts and names of others; nobody else's answer may hold it."""
CHECKED = (200, 201, 400, 404, 405, 408, 415, 429)


def fuzz(client: httpx2.Client, examples: int) -> Counter[int]:
    """Send ``examples`` requests, valid and not; return how often each status came."""
    document = client.get("/openapi.json").json()
    schema = openapi.from_dict(document)
    paths = [(path, method) for path in document["paths"] for method in document["paths"][path]]
    assert ("/v1/chat/completions", "post") in paths
    cases = [
        schema[path][method.upper()].as_strategy(generation_mode=mode)
        for path, method in paths
        for mode in (
            (GenerationMode.POSITIVE, GenerationMode.NEGATIVE) if method == "post" else (GenerationMode.POSITIVE,)
        )
    ]
    statuses: Counter[int] = Counter()
    # A path without parameters has one request only; the others make up for it.
    each = -(-examples // (2 * sum(method == "post" for _, method in paths))) + 1
    for strategy in cases:

        @given(case=strategy)
        @settings(
            max_examples=each, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def send(case: Any) -> None:
            answer = client.request(**sent(case, str(client.base_url)))
            statuses[answer.status_code] += 1
            assert answer.status_code in CHECKED, (answer.status_code, answer.text[:300])
            assert "Traceback" not in answer.text
            assert SECRET not in answer.text
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"]

        send()
    return statuses


def sent(case: Any, url: str) -> dict[str, Any]:
    """A generated case as a request that this server could have meant: its model is ours more often than not."""
    kwargs = case.as_transport_kwargs(base_url=url)
    body = kwargs.get("json")
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body["model"] = "tiny"
        if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 50:
            body["max_tokens"] = 1 + body["max_tokens"] % 50
    return {name: value for name, value in kwargs.items() if name in ("method", "url", "json", "headers", "params")} | (
        {"content": kwargs["data"]} if isinstance(kwargs.get("data"), bytes | str) else {}
    )


class Neighbour(threading.Thread):
    """Somebody who asks the same again and again meanwhile; every answer must be the first one."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.over = url, threading.Event()
        self.answers: list[Any] = []

    def run(self) -> None:
        ask = {"model": "tiny", "prompt": f"{SECRET} {SECRET}", "max_tokens": 30, "seed": 4}
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            while not self.over.wait(0.2) or len(self.answers) < 2:
                answer = client.post("/v1/completions", json=ask)
                if answer.status_code != 429:  # the queue may be full of random requests
                    self.answers.append(answer.json())


def check_fuzz(server: Running, examples: int, record: Callable[[str, object], None]) -> None:
    neighbour = Neighbour(server.url)
    neighbour.start()
    try:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            statuses = fuzz(client, examples)
    finally:
        neighbour.over.set()
        neighbour.join()
    record("statuses", dict(statuses))
    record("answers to the neighbour", len(neighbour.answers))
    assert sum(statuses.values()) >= examples
    assert statuses[200] > 0
    assert statuses[400] > 0
    texts = {answer["choices"][0]["text"] for answer in neighbour.answers}
    assert len(texts) == 1
    settle(server.service)


def test_sixty_random_requests(server: Running, record_property: Callable[[str, object], None]) -> None:
    check_fuzz(server, 60, record_property)


@pytest.mark.slow  # a thousand requests, some with long answers: minutes
def test_a_thousand_random_requests(server: Running, record_property: Callable[[str, object], None]) -> None:
    check_fuzz(server, 1000, record_property)
