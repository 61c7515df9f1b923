"""The tables. Rows are only ever added: triggers in the database itself refuse to change or remove one.

Facts are stored, judgements are not: a run's state, a replication's status and a claim's standing are
computed when they are read. Artifacts are kept in the database, not beside it: one transaction then stores a
whole run or nothing, and a team on PostgreSQL sees the same files without a shared disk. That suits the maps,
tables and reports of a study (kilobytes to some megabytes), not activations.
"""

from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    event,
)

SCHEMA = 1
"""Raised whenever a table changes."""

APPEND_ONLY = "the ledger is append-only"

metadata = MetaData()


class WholeNumber(TypeDecorator[int]):
    """An integer of any size, such as a seed, kept as its decimal digits."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Any) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Any) -> int | None:
        return None if value is None else int(value)


def _measure() -> list[Column[Any]]:
    """The columns of one measured number, as in `cutaway.study.Finding`."""
    return [
        Column("value", Double),
        Column("low", Double),
        Column("high", Double),
        Column("level", Double, nullable=False),
        Column("n", BigInteger),
        Column("unit", Text, nullable=False),
        Column("undefined", Text, nullable=False),
    ]


version = Table(
    "cutaway_schema",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("made", Text, nullable=False),
)

run = Table(
    "run",
    metadata,
    Column("id", Text, primary_key=True),
    Column("study", Text, nullable=False, index=True),
    Column("config", JSON, nullable=False),
    Column("seed", WholeNumber),
    Column("started", Text, nullable=False, index=True),
    Column("seconds", Double, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("summary", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("code", Text, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("machine", JSON, nullable=False),
    Column("cost", JSON, nullable=False),
)

artifact = Table(
    "artifact",
    metadata,
    Column("run", ForeignKey("run.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

finding = Table(
    "finding",
    metadata,
    Column("run", ForeignKey("run.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("position", Integer, nullable=False),
    *_measure(),
)

control = Table(
    "control",
    metadata,
    Column("run", Text, primary_key=True),
    Column("finding", Text, primary_key=True),
    Column("depth", Integer, primary_key=True),  # a control may have its own control
    Column("name", Text, nullable=False),
    *_measure(),
    ForeignKeyConstraint(["run", "finding"], ["finding.run", "finding.name"]),
)

replication = Table(
    "replication",
    metadata,
    Column("id", Text, primary_key=True),
    Column("run", ForeignKey("run.id"), nullable=False, index=True),
    Column("rerun", ForeignKey("run.id")),  # empty when changed inputs stopped it
    Column("changes", JSON, nullable=False),
    Column("made", Text, nullable=False),
)

prediction = Table(
    "prediction",
    metadata,
    Column("id", Text, primary_key=True),
    Column("text", Text, nullable=False),
    Column("study", Text, nullable=False),
    Column("finding", Text, nullable=False),
    Column("at_least", Double),
    Column("at_most", Double),
    Column("made", Text, nullable=False),
)

claim = Table(
    "claim",
    metadata,
    Column("id", Text, primary_key=True),
    Column("text", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("finding", Text, nullable=False),
    Column("at_least", Double),
    Column("at_most", Double),
    Column("made", Text, nullable=False),
    ForeignKeyConstraint(["run", "finding"], ["finding.run", "finding.name"]),
)

critique = Table(
    "critique",
    metadata,
    Column("id", Text, primary_key=True),
    Column("claim", ForeignKey("claim.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("answers", ForeignKey("critique.id")),
    Column("made", Text, nullable=False),
)


def _guard(table: Table) -> None:
    """Make the database refuse every change of a row of ``table``."""
    refuse = f"BEGIN SELECT RAISE(ABORT, '{APPEND_ONLY}'); END"
    same = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
    statements = [
        f"CREATE TRIGGER {table.name}_no_update BEFORE UPDATE ON {table.name} {refuse}",
        f"CREATE TRIGGER {table.name}_no_delete BEFORE DELETE ON {table.name} {refuse}",
        # INSERT OR REPLACE deletes without firing delete triggers.
        f"CREATE TRIGGER {table.name}_no_replace BEFORE INSERT ON {table.name} "
        f"WHEN EXISTS (SELECT 1 FROM {table.name} WHERE {same}) {refuse}",
    ]
    for statement in statements:
        event.listen(table, "after_create", DDL(statement).execute_if(dialect="sqlite"))
    trigger = (
        f"CREATE TRIGGER {table.name}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table.name} "
        "FOR EACH STATEMENT EXECUTE FUNCTION cutaway_append_only()"
    )
    event.listen(table, "after_create", DDL(trigger).execute_if(dialect="postgresql"))


_function = (
    "CREATE OR REPLACE FUNCTION cutaway_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN RAISE EXCEPTION '{APPEND_ONLY}'; END $$"
)
event.listen(metadata, "before_create", DDL(_function).execute_if(dialect="postgresql"))
for _table in metadata.sorted_tables:
    _guard(_table)
