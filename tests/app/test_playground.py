"""The playground: in a browser against a real server; what is saved is a run like any other."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import Running
from starlette.testclient import TestClient

from cutaway.model import Model
from cutaway.sampling import LocalEngine, Request, Settings

TRIAL: dict[str, Any] = {
    "prompt": "the cat", "chat": False, "seed": 3, "max_tokens": 12, "temperature": 1.0, "top_p": 1.0,
    "cutaway": {
        "edits": [{"edit": "Add", "site": "resid_post.0", "vector": "up", "scale": 2.0}],
        "monitors": ["probe"],
    },
}  # fmt: skip


@pytest.fixture
def http(server: Running) -> Iterator[TestClient]:
    client = TestClient(server.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    yield client
    client.close()


def test_what_is_saved_is_measured_anew_and_kept_without_the_texts(
    tiny: Model, server: Running, http: TestClient
) -> None:
    saved = http.post("/api/playground/runs", json=TRIAL)
    assert saved.status_code == 201
    assert http.get(saved.json()["url"]).status_code == 200
    report = http.get(saved.json()["url"] + "/report")
    assert report.status_code == 200
    assert "probe: mean score, steered" in report.text
    kept = http.get(saved.json()["url"] + "/files/playground.json").json()
    settings = Settings(temperature=1.0, top_p=1.0, max_tokens=12)
    with server.service.lock:
        ask = Request(tuple(tiny.encode("the cat", special=True)), (3,), settings)
        ((_, plain),) = LocalEngine(tiny).stream([ask])
    assert kept["tokens"]["plain"] == len(plain.ids)
    assert tiny.decode(plain.ids[:4]) not in json.dumps(kept)
    assert http.post("/api/playground/runs", json=TRIAL).json()["run"] != saved.json()["run"]
    chat = http.post("/api/playground/runs", json={**TRIAL, "chat": True})
    assert chat.status_code == 201


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cutaway": {"edits": [], "monitors": []}}, "nothing is edited"),
        ({"prompt": ""}, "at least 1"),
        ({"max_tokens": 500}, "context"),
        ({"extra": 1}, "Extra"),
        ({"cutaway": {"edits": [{"edit": "Add", "site": "resid_post.0", "vector": "down"}]}}, "no registered vector"),
    ],
)
def test_what_cannot_be_saved_is_refused(http: TestClient, change: dict[str, Any], match: str) -> None:
    answer = http.post("/api/playground/runs", json={**TRIAL, **change})
    assert answer.status_code == 400
    assert match in answer.json()["error"]["message"]


def says(page: Any, text: str) -> None:
    # The page's policy forbids evaluating strings, so no function of ours can wait in it.
    page.locator("#p-status", has_text=text).wait_for()


def test_two_columns_in_a_browser(server: Running, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{server.url}/playground")
    page.wait_for_selector("#playground[data-ready]")
    page.fill("#p-prompt", "the cat")
    page.fill("#p-tokens", "20")
    page.uncheck("#p-chat")
    page.fill(".p-layer", "0")
    page.fill(".p-strength", "2")
    page.click("#p-run")
    says(page, "Done.")
    plain, steered = page.inner_text("#p-plain"), page.inner_text("#p-steered")
    assert plain
    assert steered
    assert plain != steered
    assert page.locator("#p-plain span[title]").count() > 5
    assert page.locator("#p-plot polyline").count() == 2
    page.fill(".p-strength", "0")
    page.click("#p-run")
    says(page, "Nothing is edited")
    assert page.inner_text("#p-steered") == page.inner_text("#p-plain") == plain
    page.fill(".p-strength", "2")
    page.click("#p-save")
    page.wait_for_selector("#p-status a")
    page.click("#p-status a")
    page.frame_locator("iframe.report").locator("text=What was found").wait_for()
    assert complaints == []
    page.close()


def test_a_refusal_is_shown(server: Running, browser: Any) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/playground")
    page.wait_for_selector("#playground[data-ready]")
    page.fill("#p-prompt", "1234")
    page.uncheck("#p-chat")
    page.click("#p-run")
    says(page, "empty")
    page.close()
