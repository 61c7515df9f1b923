"""Who is let in: hosts, origins, tokens, sizes, and what every answer carries."""

import asyncio
import base64
from typing import Any

import pytest
from starlette.testclient import TestClient

from cutaway.app import Access, access, create_app
from cutaway.app.guard import Guard
from cutaway.errors import UsageError

TOKEN = "a-long-enough-token"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "a@127.0.0.1", "["]
)
def test_a_foreign_host_name_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/runs", headers={"host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "LocalHost", "[::1]:80"])
def test_loopback_names_are_let_in(client: TestClient, host: str) -> None:
    assert client.get("/runs", headers={"host": host}).status_code == 200


def test_another_sites_page_may_not_post(client: TestClient) -> None:
    assert client.post("/runs", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/runs", headers={"origin": "null"}).status_code == 403
    assert client.post("/runs", headers={"origin": "http://127.0.0.1"}).status_code == 405  # let in; nothing there


def test_beyond_loopback_a_token_is_needed(ledger_url: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        access("0.0.0.0", None)
    with pytest.raises(UsageError, match="16 ASCII"):
        access("0.0.0.0", "short")
    allowed = access("0.0.0.0", TOKEN)
    basic = base64.b64encode(f"any:{TOKEN}".encode()).decode()
    with TestClient(create_app(ledger_url, access=allowed), base_url="http://box.example") as client:
        refused = client.get("/runs")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic")
        for wrong in ("Bearer nope", f"Bearer {TOKEN}x", "Basic %%%", "Bearer", f"Digest {TOKEN}"):
            assert client.get("/runs", headers={"authorization": wrong}).status_code == 401
        for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}"):
            assert client.get("/runs", headers={"authorization": right}).status_code == 200


def test_a_named_host_admits_only_that_name(ledger_url: str) -> None:
    with TestClient(
        create_app(ledger_url, access=access("box.example", TOKEN)), base_url="http://box.example"
    ) as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        assert client.get("/runs", headers=headers).status_code == 200
        assert client.get("/runs", headers={**headers, "host": "evil.example"}).status_code == 421


def test_a_large_body_is_refused_with_and_without_its_length(ledger_url: str) -> None:
    with TestClient(create_app(ledger_url, access=Access(max_body=1000)), base_url="http://127.0.0.1") as client:
        assert client.post("/runs", content=b"x" * 1001).status_code == 413
        assert client.post("/runs", content=iter([b"x" * 600, b"x" * 600])).status_code == 413
        assert client.post("/runs", content=b"x" * 1000).status_code == 405
        assert client.post("/runs", headers={"content-length": "-5"}).status_code == 400


def test_a_body_that_never_comes_and_a_reader_that_never_reads_are_dropped() -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never(*_: Any) -> Any:
        await asyncio.sleep(60)

    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    async def at_once() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    guard = Guard(inner, Access(body_seconds=0.05, stall_seconds=0.05))
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    asyncio.run(guard(scope, never, keep))
    assert sent[0]["status"] == 408
    with pytest.raises(OSError, match="stopped reading"):
        asyncio.run(guard(scope, at_once, never))


def test_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/runs", "/static/app.css", "/nothing"):
        headers = client.get(path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in client.get("/runs").headers["content-security-policy"]
