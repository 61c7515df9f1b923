"""A ledger with two runs, an app over it, a client that speaks from loopback."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

# Let the tests import their helpers by name, and those of the engines' own tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "sampling"))
sys.path.insert(0, str(Path(__file__).parent))

from openai_server import tiny_model, tiny_tokenizer
from served import Running, running

from cutaway.app import create_app
from cutaway.app.registry import Registry
from cutaway.ledger import Ledger
from cutaway.ledger.records import RunRecord, now
from cutaway.model import Add, Model
from cutaway.probes import LinearProbe
from cutaway.sampling.types import Cost
from cutaway.study import Finding, Findings


def record(id: str, summary: str) -> RunRecord:
    return RunRecord(
        id=id, study="some-study", config={"seed": 1}, seed=1, started=now(), seconds=1.0, complete=True,
        summary=summary, inputs={}, code="c" * 64, versions={"cutaway": "0"}, machine={"cpu": "x"}, cost=Cost(),
    )  # fmt: skip


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger(url) as ledger:
        found = Findings((Finding("effect", 0.5, 0.4, 0.6, n=10),), "an effect", {"data.json": b'{"a": 1}'})
        ledger.add_run(record("aaaa000001", "an effect <script>alert(1)</script>"), found)
        ledger.add_run(record("bbbb000002", "nothing"), Findings((), "nothing"))
    return url


@pytest.fixture
def client(ledger_url: str) -> Iterator[TestClient]:
    with TestClient(create_app(ledger_url), base_url="http://127.0.0.1") as client:
        yield client


CHAT = "{% for m in messages %}{{ m.role[0] }}, {{ m.content }}. {% endfor %}"


@pytest.fixture(scope="session")
def tiny() -> Model:
    """A random two-layer Llama that knows letters, one token each."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return Model(tiny_model().requires_grad_(False), tokenizer, "tiny")


@pytest.fixture(scope="session")
def registry(tiny: Model) -> Registry:
    generator = torch.Generator().manual_seed(3)
    vector = torch.randn(tiny.d_model, generator=generator)
    probe = LinearProbe(torch.randn(tiny.d_model, generator=generator), 0.25, "resid_post.1")
    return Registry({"up": vector}, {"steered": (Add("resid_post.0", vector, 2.0),)}, {"probe": probe})


@pytest.fixture(scope="session")
def server(tiny: Model, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A real server on a port of loopback, for clients that need one."""
    url = f"sqlite:///{tmp_path_factory.mktemp('served') / 'ledger.db'}"
    with running(create_app(url, model=tiny, registry=registry)) as found:
        yield found


@pytest.fixture(scope="module")  # another folder's browser could not start beside this one
def browser() -> Iterator[Any]:
    """Chromium with no network but the loopback address."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", offline]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()
