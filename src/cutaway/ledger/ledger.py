"""The ledger: what was run, on what, what was found. A run is added in one transaction, never changed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import PurePath
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, Table, insert, select
from sqlalchemy.engine import URL

from cutaway.errors import CutawayError, UsageError, nearest
from cutaway.ledger import schema
from cutaway.ledger.connect import one_line, open_engine, parse_url
from cutaway.ledger.records import ArtifactRecord, Change, Comparison, Recheck, RunRecord, new_id, now
from cutaway.sampling.types import Cost
from cutaway.study import Finding, Findings

MEDIA_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".csv": "text/csv",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".parquet": "application/vnd.apache.parquet",
    ".safetensors": "application/octet-stream",
}

_RUN = [column.name for column in schema.run.c]
_ARTIFACT = [column for column in schema.artifact.c if column.name != "content"]


class Ledger:
    """Append-only records at ``url``: an SQLite file or a PostgreSQL database.

    ``timeout``: seconds to wait while another process writes. Use as a context manager, or call `close`.
    """

    def __init__(self, url: str | URL, *, timeout: float = 30.0) -> None:
        self.url = parse_url(url)
        self._engine = open_engine(self.url, timeout)

    def __repr__(self) -> str:
        return f"Ledger({self.url.render_as_string()!r})"

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the ledger opens them again when used."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read transaction; database errors come out as one line."""
        with one_line(self.url), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A write transaction: everything in it is stored, or nothing."""
        with one_line(self.url), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    def check_writable(self) -> None:
        """CutawayError when a run could not be stored here: tries a write, and takes it back."""
        with one_line(self.url), self._engine.execution_options(writes=True).connect() as connection:
            connection.execute(insert(schema.version).values(version=0, made=now()))
            connection.rollback()

    def add_run(
        self, run: RunRecord, findings: Findings, replicates: tuple[str, Sequence[Change]] | None = None
    ) -> None:
        """Store a run with all it found; ``replicates``: the run that it repeats, and what changed since."""
        with self.writing() as connection:
            _add(connection, schema.run, [asdict(run)])
            _add(connection, schema.finding, _finding_rows(run.id, findings.items))
            _add(connection, schema.control, _control_rows(run.id, findings.items))
            _add(connection, schema.artifact, _artifact_rows(run.id, findings.artifacts))
            if replicates is not None:
                _add(connection, schema.replication, [_replication_row(*replicates, run.id)])

    def add_replication(self, run: str, changes: Sequence[Change]) -> None:
        """Store that a recheck of ``run`` stopped at changed inputs."""
        with self.writing() as connection:
            _add(connection, schema.replication, [_replication_row(run, changes, None)])

    def runs(self, limit: int = 20, study: str | None = None) -> tuple[RunRecord, ...]:
        """The latest runs, newest first."""
        if limit < 1:
            raise UsageError(f"limit={limit}: must be at least 1")
        query = select(schema.run).order_by(schema.run.c.started.desc(), schema.run.c.id).limit(limit)
        if study is not None:
            query = query.where(schema.run.c.study == study)
        with self.reading() as connection:
            return tuple(_run(row) for row in connection.execute(query).mappings())

    def run(self, id: str) -> RunRecord:
        """The run whose id is, or alone begins with, ``id``; UsageError with near ids otherwise."""
        run = schema.run
        like = select(run).where(run.c.id.startswith(id, autoescape=True)).order_by(run.c.id).limit(6)
        with self.reading() as connection:
            found = [_run(row) for row in connection.execute(like).mappings()]
            if len(found) == 1 and id:
                return found[0]
            latest = select(run.c.id).order_by(run.c.started.desc()).limit(1000)
            known = list(connection.scalars(latest))
        if not known:
            raise UsageError(f"no run {id!r}: this ledger is empty")
        if not found or not id:
            raise UsageError(f"no run {id!r}{nearest(id, known)}")
        several = ", ".join(each.id for each in found[:5]) + (", ..." if len(found) > 5 else "")
        raise UsageError(f"run {id!r} could be any of {several}; give more of the id")

    def findings(self, run: str) -> tuple[Finding, ...]:
        """The findings of a run (id or prefix), in the order the study gave them."""
        id = self.run(run).id
        items, controls = schema.finding, schema.control
        with self.reading() as connection:
            rows = connection.execute(select(items).where(items.c.run == id).order_by(items.c.position)).mappings()
            below = connection.execute(
                select(controls).where(controls.c.run == id).order_by(controls.c.depth.desc())
            ).mappings()
            chains: dict[str, Finding] = {}
            for row in below:  # deepest first, so each control finds its own control made
                chains[row["finding"]] = _finding(row, chains.get(row["finding"]))
            return tuple(_finding(row, chains.get(row["name"])) for row in rows)

    def artifacts(self, run: str) -> tuple[ArtifactRecord, ...]:
        """The files of a run (id or prefix), by name, without their content."""
        id = self.run(run).id
        query = select(*_ARTIFACT).where(schema.artifact.c.run == id).order_by(schema.artifact.c.name)
        with self.reading() as connection:
            return tuple(ArtifactRecord(**row) for row in connection.execute(query).mappings())

    def artifact(self, run: str, name: str) -> bytes:
        """The content of one file of a run (id or prefix); CutawayError when it does not match its hash."""
        id = self.run(run).id
        table = schema.artifact
        query = select(table.c.content, table.c.sha256).where(table.c.run == id, table.c.name == name)
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            names = [each.name for each in self.artifacts(id)]
            raise UsageError(f"run {id} has no artifact {name!r}{nearest(name, names)}")
        if hashlib.sha256(row.content).hexdigest() != row.sha256:
            raise CutawayError(f"artifact {name!r} of run {id} is damaged: its content does not match its sha256")
        return bytes(row.content)

    def replications(self, run: str) -> tuple[Recheck, ...]:
        """Every recheck of a run (id or prefix), oldest first, compared anew from the stored findings."""
        id = self.run(run).id
        table = schema.replication
        query = select(table).where(table.c.run == id).order_by(table.c.made, table.c.id)
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        before = self.findings(id)
        return tuple(
            Recheck(
                **{**row, "changes": tuple(Change(**change) for change in row["changes"])},
                comparisons=compare(before, self.findings(row["rerun"])) if row["rerun"] else (),
            )
            for row in rows
        )


def compare(before: Sequence[Finding], after: Sequence[Finding]) -> tuple[Comparison, ...]:
    """Pair two runs' findings by name: those of the first run in their order, then new ones."""
    old, new = {each.name: each for each in before}, {each.name: each for each in after}
    return tuple(Comparison(name, old.get(name), new.get(name)) for name in [*old, *(new.keys() - old.keys())])


def _add(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection.execute(insert(table), [{key: _storable(value) for key, value in row.items()} for row in rows])


def _storable(value: Any) -> Any:
    # A model may write NUL or half a surrogate pair; databases refuse those, and a run must not be lost.
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value


def _finding_rows(run: str, items: Sequence[Finding]) -> list[dict[str, Any]]:
    return [{"run": run, "position": index, **_measure(item)} for index, item in enumerate(items)]


def _control_rows(run: str, items: Sequence[Finding]) -> list[dict[str, Any]]:
    rows = []
    for item in items:
        depth, control = 0, item.control
        while control is not None:
            rows.append({"run": run, "finding": item.name, "depth": depth, **_measure(control)})
            depth, control = depth + 1, control.control
    return rows


def _measure(item: Finding) -> dict[str, Any]:
    return {key: value for key, value in vars(item).items() if key != "control"}


def _artifact_rows(run: str, artifacts: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {
            "run": run,
            "name": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "media_type": MEDIA_TYPES[PurePath(name).suffix],
            "size": len(content),
            "content": content,
        }
        for name, content in artifacts.items()
    ]


def _replication_row(run: str, changes: Sequence[Change], rerun: str | None) -> dict[str, Any]:
    return {
        "id": new_id("replication", run),
        "run": run,
        "rerun": rerun,
        "changes": [asdict(change) for change in changes],
        "made": now(),
    }


def _run(row: Mapping[Any, Any]) -> RunRecord:
    return RunRecord(**{**row, "cost": Cost(**row["cost"])})


def _finding(row: Mapping[Any, Any], control: Finding | None) -> Finding:
    keys = ("name", "value", "low", "high", "level", "n", "unit", "undefined")
    return Finding(**{key: row[key] for key in keys}, control=control)
