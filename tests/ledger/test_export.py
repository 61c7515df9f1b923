"""What leaves the house tells nothing of paths, people, machines or keys."""

import getpass
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.ledger import Ledger, export, record
from cutaway.ledger.export import scrub
from cutaway.ledger.records import RunRecord, now
from cutaway.sampling.types import Cost
from cutaway.study import Finding, Findings, Lab

pytestmark = pytest.mark.usefixtures("dice")


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory and user name that would be noticed."""
    home = tmp_path / "wilhelmina"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for key in ("USER", "LOGNAME"):
        monkeypatch.setenv(key, "wilhelmina")
    monkeypatch.setattr(socket, "gethostname", lambda: "minas-laptop")
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    return home


def test_an_export_keeps_the_numbers_and_loses_the_person(ledger: Ledger, person: Path) -> None:
    model = str(person / "models" / "tiny-llama")
    sha = "0123456789abcdef" * 4
    config = {"model": model, "prompt": "What is 1/2 of the square root and/or 5?", "api_key": "plain"}
    run = RunRecord(
        "abc123", "dice", config, 7, now(), 1.5, True, f"see {model}/log.txt", {f"weights:{model}": sha},
        "c" * 64, {"torch": "2"}, {"machine": "x86_64"}, Cost(1, 2, 3),
    )  # fmt: skip
    reason = f"OSError: '{person}/x' by wilhelmina on minas-laptop with correct-horse-battery"
    items = (Finding("effect", 0.25, 0.1, 0.4), Finding("other", None, undefined=reason))
    ledger.add_run(run, Findings(items, "", {"map.json": b"{}"}))
    told = export(ledger, "abc")
    text = json.dumps(told, allow_nan=False)
    for private in (str(person), "wilhelmina", "models/", "plain", "correct-horse", "minas"):
        assert private not in text
    assert told["run"]["config"]["model"] == "tiny-llama@01234567"
    assert told["run"]["config"]["prompt"] == config["prompt"]
    assert told["run"]["inputs"] == {"weights:tiny-llama": sha}
    assert told["run"]["summary"] == "see log.txt"
    assert told["run"]["state"] == "finished"
    assert told["findings"][0]["value"] == 0.25
    assert told["artifacts"][0]["name"] == "map.json"


def test_a_real_run_exports_without_home_or_user(ledger: Ledger, make_config: Callable[..., Any], lab: Lab) -> None:
    config = make_config(prompt=f"read {Path.home()}/notes and {lab.home}", api_key="sesame")
    text = json.dumps(export(ledger, record(ledger, "dice", config, lab).id))
    assert str(Path.home()) not in text
    assert str(lab.home.parent) not in text
    assert "sesame" not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/srv/data/models/llama", "llama"),
        ("/srv/my data/models/llama 2/", "llama 2"),
        ("~/models/llama", "llama"),
        ("C:\\Users\\mina\\models\\llama", "llama"),
        ("loaded C:\\Users\\mina\\llama today", "loaded llama today"),
        ("sqlite:////srv/data/ledger.db", "ledger.db"),
        ("file:///srv/data/x.json", "x.json"),
        ("data:/srv/sets/aime", "data:aime"),
        ('File "/usr/lib/python3/x.py", line 3', 'File "x.py", line 3'),
        ("https://me:pw@host.example/v1", "https://host.example/v1"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("and/or, 3/4, a / b, /think", "and/or, 3/4, a / b, /think"),
        ("hf_abcdefghijklmnopqrstuv", "<removed>"),
        ("Bearer abc.def", "Bearer <removed>"),
        ("the square root of 2", "the square root of 2"),
    ],
)
def test_scrubbing(given: str, expected: str) -> None:
    assert scrub(given) == expected


@given(
    before=st.text(alphabet="ab \n'\"(:=,", max_size=6),
    folders=st.lists(st.text(alphabet="xyz09_-.", min_size=1, max_size=6), min_size=1, max_size=3),
    after=st.text(alphabet=" \n'\"),", max_size=3),
)
def test_a_home_directory_never_survives(before: str, folders: list[str], after: str) -> None:
    home = Path.home()
    path = str(home.joinpath(*folders))
    text = json.dumps(scrub({"a": f"{before}{path}{after}", path: [path]}))
    assert str(home) not in text
    if home.name != "root":
        assert home.name not in text
