"""A ledger with two runs, an app over it, a client that speaks from loopback."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent))  # let the tests import their helpers by name

from cutaway.app import create_app
from cutaway.ledger import Ledger
from cutaway.ledger.records import RunRecord, now
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
