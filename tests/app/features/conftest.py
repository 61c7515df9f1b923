"""The app over one small index, as a client, as a server, and in a browser."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[2] / "features" / "index"))  # the index's test helpers
sys.path.insert(0, str(Path(__file__).parent))  # and our own

from makers import ODD, SCRIPT, SMALL, by_hand, detector, texts, tiny

from cutaway.app import create_app
from cutaway.features.index import FeatureIndex, add_notes, fill
from cutaway.model import Model

NODES = [("activating", "the"), ("context", SCRIPT.lower()), ("end", "")]


def graph() -> dict[str, Any]:
    nodes = [
        {"id": i, "tokens": [token] if token else [], "role": role, "importance": 0.9, "activation": 1.0, "count": 3}
        for i, (role, token) in enumerate(NODES)
    ]
    return {"name": f"neuron {SCRIPT}", "nodes": nodes, "edges": [[0, 1], [1, 2]]}


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny()


@pytest.fixture(scope="session")
def index(model: Model, tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    made = fill(
        model, texts(), tmp_path_factory.mktemp("index"), dictionaries={"odd": detector(model, ODD)}, config=SMALL
    )
    explained = [{"description": f"articles {SCRIPT}", "score": 0.5}]
    return add_notes(made, {(0, "graph"): graph(), (0, "explanations"): explained})


@pytest.fixture(scope="session")
def app(index: FeatureIndex, model: Model, tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/l.db", model=model, index=index.folder)


@pytest.fixture(scope="session")
def client(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """An index with as little as can be, and no model."""
    tokens = [b"a", b"b", b"\xf0", b"\n", SCRIPT.encode(), b'"', b"%:,/"]
    index = by_hand(tmp_path_factory.mktemp("bare"), tokens, units=160)
    ledger = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/l.db"
    return TestClient(create_app(ledger, index=index.folder), base_url="http://127.0.0.1")


@pytest.fixture(scope="session")
def address(app: FastAPI) -> Iterator[str]:
    """The app on a free port of the loopback address."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open a page of the app; at the end nothing may have been logged, raised or asked of another address."""
    contexts, trouble = [], []

    def opened(path: str, **options: object) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        # A refused text is logged by the browser itself; the page shows it.
        page.on("console", lambda message: "status of 422" in message.text or trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: asked.url.startswith((address, "data:")) or trouble.append(asked.url))
        page.goto(address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert trouble == []
