"""A process killed anywhere leaves whole runs only; writers at once lose nothing; a broken ledger says so."""

import os
import resource
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from cutaway.errors import CutawayError
from cutaway.ledger import Ledger, default_url, record, schema
from cutaway.ledger.provenance import machine
from cutaway.ledger.records import RunRecord, now
from cutaway.sampling.types import Cost
from cutaway.study import Findings, Lab

pytestmark = pytest.mark.usefixtures("dice")


def _fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child process; the child's id."""
    machine()  # fills the cache, so that the child starts no torch of its own
    if child := os.fork():
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def _ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("table", ["study", "run", "finding", "control", "artifact", "commit"])
def test_a_kill_in_the_middle_leaves_no_half_run(
    url: str, table: str, config: Any, lab: Lab, dice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_after_insert(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if statement.startswith(f"INSERT INTO {table} "):
            die()

    def work() -> None:
        if table == "study":
            monkeypatch.setattr(dice, "run", die)
        elif table == "commit":
            event.listen(Engine, "commit", die)
        else:
            event.listen(Engine, "after_cursor_execute", die_after_insert)
        record(ledger, "dice", config, lab)

    with Ledger(url) as before:
        first = record(before, "dice", config, lab)
    ledger = Ledger(url)
    ledger.close()  # the child must open a connection of its own
    assert _ended(_fork(work)) == -signal.SIGKILL
    assert [run.id for run in ledger.runs()] == [first.id]
    with ledger.reading() as connection:
        for each in (schema.finding, schema.control, schema.artifact):
            assert set(connection.scalars(text(f"SELECT run FROM {each.name}"))) == {first.id}
    again = record(ledger, "dice", config, lab)
    assert {run.id for run in ledger.runs()} == {first.id, again.id}
    ledger.close()


def test_two_processes_writing_at_once_lose_nothing(url: str, make_config: Callable[..., Any], lab: Lab) -> None:
    def work(writer: int) -> None:
        with Ledger(url) as ledger:  # both may be the one that creates the tables
            for index in range(50):
                record(ledger, "dice", make_config(seed=100 * writer + index), lab)

    children = [_fork(lambda writer=writer: work(writer)) for writer in (1, 2)]
    assert [_ended(child) for child in children] == [0, 0]
    with Ledger(url) as ledger:
        runs = ledger.runs(limit=1000)
        assert sorted(run.seed or 0 for run in runs) == [*range(100, 150), *range(200, 250)]
        assert all(len(ledger.findings(run.id)) == 3 for run in runs[::10])


def test_a_newer_schema_is_refused(url: str, refused: Callable[..., Any]) -> None:
    with Ledger(url) as ledger, ledger.writing() as connection:
        connection.execute(schema.version.insert().values(version=schema.SCHEMA + 1, made=now()))
    with refused("has schema 2, this Cutaway reads 1; upgrade", CutawayError):
        Ledger(url)


def test_tables_of_someone_else_are_left_alone(url: str, refused: Callable[..., Any]) -> None:
    with Ledger(url) as ledger:
        engine = ledger._engine
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE cutaway_schema"))
    with refused("a table 'artifact' that Cutaway did not make"):
        Ledger(url)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("ledger.db", r"'ledger.db' is not a database URL; use sqlite:///"),
        ("me:secret@host/db", "not a database URL"),
        ("mysql://me:secret@host/db", r"'mysql' is not supported; use sqlite:///"),
        ("", "not a database URL"),
    ],
)
def test_bad_urls(bad: str, said: str, refused: Callable[..., Any]) -> None:
    with refused(said) as caught:
        Ledger(bad)
    assert "mysql" not in bad or "secret" not in str(caught.value)


def test_an_unreachable_server(refused: Callable[..., Any]) -> None:
    with refused(r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db: .*refused", CutawayError):
        Ledger("postgresql://me:secret@127.0.0.1:1/db", timeout=2.0)


def test_a_folder_that_cannot_be_made(tmp_path: Path, refused: Callable[..., Any]) -> None:
    (tmp_path / "file").touch()
    with refused("cannot make its folder", CutawayError):
        Ledger(default_url(tmp_path / "file" / "below"))


def test_a_folder_that_may_not_be_written(tmp_path: Path, refused: Callable[..., Any]) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)

    def work() -> None:
        if os.geteuid() == 0:  # root may write anywhere
            for parent in (tmp_path, *tmp_path.parents[:3]):
                parent.chmod(0o755)
            os.setuid(65534)
        with refused("cannot be opened; check", CutawayError):
            Ledger(default_url(folder))

    assert _ended(_fork(work)) == 0


def test_a_ledger_that_may_only_be_read_says_so_before_the_work(
    tmp_path: Path, config: Any, lab: Lab, refused: Callable[..., Any]
) -> None:
    with Ledger(default_url(tmp_path)) as ledger:
        first = record(ledger, "dice", config, lab)

    def work() -> None:
        with Ledger(f"sqlite:///file:{tmp_path}/ledger.db?mode=ro&uri=true") as ledger:
            assert ledger.run(first.id) == first
            kept = len(list(lab.tree_folder("dice").iterdir()))
            with refused("may not be written by you", CutawayError):
                record(ledger, "dice", config, lab)
            assert len(list(lab.tree_folder("dice").iterdir())) == kept

    assert _ended(_fork(work)) == 0
    assert not Path("file:").exists(), "a URI is no path"


@pytest.mark.parametrize("content", [b"this is not a database, it is a letter" * 40, b"\0" * 4096])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes, refused: Callable[..., Any]) -> None:
    (tmp_path / "ledger.db").write_bytes(content)
    with refused("not an SQLite database|damaged", CutawayError):
        Ledger(default_url(tmp_path))
    assert (tmp_path / "ledger.db").read_bytes() == content


def test_a_damaged_database(sqlite: Ledger, config: Any, lab: Lab, tmp_path: Path, refused: Callable[..., Any]) -> None:
    record(sqlite, "dice", config, lab)
    sqlite.close()
    path = tmp_path / "ledger.db"
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(path.stat().st_size - 4096))
    with refused("damaged", CutawayError):
        Ledger(default_url(tmp_path)).runs()


def test_a_damaged_artifact_is_not_handed_out(
    ledger: Ledger, config: Any, lab: Lab, refused: Callable[..., Any]
) -> None:
    run = record(ledger, "dice", config, lab)
    with ledger.writing() as connection:
        row = {
            "run": run.id,
            "name": "x.json",
            "sha256": "0" * 64,
            "media_type": "",
            "size": 2,
            "content": b"{}",
        }
        connection.execute(schema.artifact.insert().values(row))
    with refused("'x.json' .* is damaged", CutawayError):
        ledger.artifact(run.id, "x.json")


def test_a_locked_database(tmp_path: Path, config: Any, lab: Lab, refused: Callable[..., Any]) -> None:
    with Ledger(default_url(tmp_path), timeout=0.2) as ledger:
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with refused("another process kept it locked", CutawayError):
            record(ledger, "dice", config, lab)
        assert ledger.runs() == ()  # readers do not wait for writers
        other.execute("ROLLBACK")
        other.close()
        record(ledger, "dice", config, lab)


def test_a_full_disk_leaves_the_ledger_whole(tmp_path: Path, refused: Callable[..., Any]) -> None:
    with Ledger(default_url(tmp_path)) as ledger:
        ledger.add_run(_bare("first"), Findings((), ""))
    ledger.close()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        with refused("free some and run again", CutawayError):
            ledger.add_run(_bare("second"), Findings((), "", {"big.parquet": os.urandom(2**22)}))
        ledger.add_run(_bare("third"), Findings((), "", {"small.parquet": b"0" * 1000}))

    assert _ended(_fork(work)) == 0
    assert sorted(run.id for run in ledger.runs()) == ["first", "third"]
    ledger.close()


def test_without_the_driver_the_install_line_is_given(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with refused(r"pip install 'cutaway\[postgres\]'"):
        Ledger("postgresql://host/db")


def _bare(id: str) -> RunRecord:
    return RunRecord(id, "dice", {}, None, now(), 0.1, True, "", {}, "c", {}, {}, Cost())
