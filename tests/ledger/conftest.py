"""One ledger suite over SQLite and PostgreSQL, with a small study to fill it."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel
from sqlalchemy import create_engine, text

import cutaway.study as room
from cutaway.errors import UsageError
from cutaway.ledger import Ledger
from cutaway.sampling.types import Cost
from cutaway.study import Calibration, Finding, Findings, Lab, Study, StudyConfig


class Dice(StudyConfig):
    model: str | None = None
    """A model whose weights shift the mean."""
    seed: int = 0
    """Fixes the throws."""
    partial: bool = False
    """Ends as if Ctrl-C had come."""
    api_key: str = ""
    """Would be secret."""
    prompt: str = "throw"
    """What is asked."""


class DiceStudy(Study[Dice]):
    id: ClassVar[str] = "dice"
    title: ClassVar[str] = "throws dice"
    paper: ClassVar[str] = "Dice (arXiv:2501.00001)"
    Config: ClassVar[type[BaseModel]] = Dice
    drift: ClassVar[float] = 0.0
    """What a test adds to the next run's mean."""
    data: ClassVar[str] = ""
    """Hash of data that only a run names."""

    def run(self, config: Dice, lab: Lab) -> Findings:
        trees = len(list(lab.tree_folder("dice").iterdir()))
        (lab.tree_folder("dice") / f"{trees}").touch()
        mean = 3.5 + config.seed + self.drift
        faces = Finding("faces", 6.0 + self.drift)
        control = Finding("mean, loaded", 3.5, 3.0, 4.0, n=60, control=Finding("mean, fair", 3.4, n=60))
        items = (
            Finding("mean", mean, mean - 0.5, mean + 0.5, n=60, unit="eyes", control=control),
            Finding("luck", None, undefined="cannot be measured"),
            faces,
        )
        artifacts = {"throws.json": b'{"throws": [1, 2]}', "report.html": b"<p>\x00\xff"}
        inputs = {"data:throws": self.data} if self.data else {}
        return Findings(
            items,
            f"mean {mean}, {trees} kept",
            artifacts,
            inputs,
            Cost(3, 2, 1),
            not config.partial,
            object(),
        )

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        raise NotImplementedError


@pytest.fixture
def dice(monkeypatch: pytest.MonkeyPatch) -> type[DiceStudy]:
    """The study ``dice``, registered for one test."""
    # All studies first: one imported while the registry is patched would be lost to later tests.
    monkeypatch.setattr(room, "_registry", dict(room.studies()))
    room.study(DiceStudy)
    monkeypatch.setattr(DiceStudy, "drift", 0.0)
    monkeypatch.setattr(DiceStudy, "data", "")
    return DiceStudy


@pytest.fixture
def config() -> Dice:
    return Dice()


@pytest.fixture
def make_config() -> Callable[..., Dice]:
    return Dice


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(home=tmp_path / "home")


def _postgres_bin() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), default=None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own on a loopback port; yields its URL without a database name."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (no initdb on PATH or under /usr/lib/postgresql)")
    # The server refuses root, and pytest's own folders are closed to other users.
    user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="cutaway-pg-"))
    if user:
        shutil.chown(folder, user)

    def call(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    try:
        call("initdb", "-U", "cutaway", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://cutaway@127.0.0.1:{port}"
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    server: str = request.getfixturevalue("postgres")
    name = f"test{os.urandom(6).hex()}"  # a schema of its own: a hundred times cheaper than a database
    engine = create_engine(
        f"{server}/postgres".replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return f"{server}/postgres?options=-csearch_path%3D{name}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger(url) as opened:
        yield opened


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


@pytest.fixture
def refused() -> Callable[..., Any]:
    """``with refused("text"):`` a UsageError of one line that says ``text``."""

    def expect(match: str, error: type[Exception] = UsageError) -> Any:
        return pytest.raises(error, match=r"^[^\n]*" + match + r"[^\n]*$")

    return expect
