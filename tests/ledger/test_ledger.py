"""What goes in comes out, on SQLite and PostgreSQL alike, and nothing that is in can be changed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, text

from cutaway.errors import CutawayError
from cutaway.ledger import Ledger, record, schema
from cutaway.ledger.records import RunRecord, new_id, now
from cutaway.sampling.types import Cost
from cutaway.study import Finding, Findings, Lab

pytestmark = pytest.mark.usefixtures("dice")


def test_a_run_comes_back_whole(ledger: Ledger, config: Any, lab: Lab, dice: Any) -> None:
    run = record(ledger, "dice", config, lab)
    assert ledger.runs() == (run,)
    assert ledger.run(run.id) == run
    assert (run.state, run.seed, run.cost) == ("finished", 0, Cost(3, 2, 1))
    assert run.config == config.model_dump()
    assert len(run.code) == 64
    assert {"python", "torch", "transformers", "tokenizers", "numpy", "cutaway"} == set(run.versions)
    again = dice().run(config, lab)
    assert ledger.findings(run.id) == again.items
    assert [each.name for each in ledger.artifacts(run.id)] == ["report.html", "throws.json"]
    assert ledger.artifacts(run.id)[1].media_type == "application/json"
    for name, content in again.artifacts.items():
        assert ledger.artifact(run.id, name) == content
    json.dumps([run.to_dict(), ledger.artifacts(run.id)[0].to_dict()], allow_nan=False)


def test_an_interrupted_study_is_stored_as_partial(ledger: Ledger, make_config: Callable[..., Any], lab: Lab) -> None:
    assert record(ledger, "dice", make_config(partial=True), lab).state == "partial"


def test_an_interrupt_that_passes_stores_nothing(
    ledger: Ledger, config: Any, lab: Lab, dice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dice, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        record(ledger, "dice", config, lab)
    assert ledger.runs() == ()


def test_runs_are_listed_newest_first(
    ledger: Ledger, make_config: Callable[..., Any], lab: Lab, refused: Callable[..., Any]
) -> None:
    made = [record(ledger, "dice", make_config(seed=seed), lab).id for seed in range(3)]
    assert [run.id for run in ledger.runs()] == made[::-1]
    assert [run.id for run in ledger.runs(limit=2)] == made[:0:-1]
    assert ledger.runs(study="other") == ()
    with refused("limit=0"):
        ledger.runs(limit=0)


def _run(id: str) -> RunRecord:
    return RunRecord(id, "dice", {}, None, now(), 0.1, True, "", {}, "c", {}, {}, Cost())


def test_a_prefix_names_a_run_that_no_other_shares(ledger: Ledger, refused: Callable[..., Any]) -> None:
    with refused("no run 'ab': this ledger is empty"):
        ledger.run("ab")
    for id in ("abc1", "abd2", "ab_3", "ffff"):
        ledger.add_run(_run(id), Findings((), ""))
    assert ledger.run("abc").id == "abc1"
    assert ledger.run("ab_").id == "ab_3"
    assert ledger.run("ffff").id == "ffff"
    with refused("'ab' could be any of ab_3, abc1, abd2"):
        ledger.run("ab")
    with refused("no run 'fff2'; did you mean 'ffff'"):
        ledger.run("fff2")
    with refused("no run ''"):
        ledger.run("")
    with refused("no artifact 'x.json'"):
        ledger.artifact("ffff", "x.json")


@pytest.mark.parametrize("table", list(schema.metadata.tables))
def test_rows_cannot_be_changed_replaced_or_removed(
    ledger: Ledger, table: str, config: Any, lab: Lab, refused: Callable[..., Any]
) -> None:
    _fill_every_table(ledger, config, lab)
    column = next(iter(schema.metadata.tables[table].c)).name
    attempts = [f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"]
    if ledger.url.get_backend_name() == "sqlite":
        attempts.append(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
    else:
        attempts.append(f"TRUNCATE {table} CASCADE")
    for attempt in attempts:
        with refused("append-only", CutawayError), ledger.writing() as connection:
            connection.execute(text(attempt))


def _fill_every_table(ledger: Ledger, config: Any, lab: Lab) -> None:
    run = record(ledger, "dice", config, lab)
    common = {"text": "t", "finding": "mean", "made": now()}
    with ledger.writing() as connection:
        connection.execute(insert(schema.replication).values(id="r", run=run.id, changes=[], made=now()))
        connection.execute(insert(schema.prediction).values(id="p", study="dice", **common))
        connection.execute(insert(schema.claim).values(id="c", run=run.id, **common))
        connection.execute(insert(schema.critique).values(id="k", claim="c", text="t", made=now()))


def test_the_state_of_a_run_is_no_column() -> None:
    for table in schema.metadata.tables.values():
        assert not {"state", "status", "outcome", "verdict"} & set(table.c.keys())


def test_nothing_can_be_pickled_into_the_ledger() -> None:
    kinds = {type(column.type).__name__ for table in schema.metadata.tables.values() for column in table.c}
    assert kinds <= {
        "Text",
        "WholeNumber",
        "JSON",
        "Integer",
        "BigInteger",
        "Double",
        "Boolean",
        "LargeBinary",
    }


number = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(), max_size=20)


@st.composite
def findings(draw: st.DrawFn, depth: int = 2) -> Finding:
    ends = sorted(draw(st.tuples(number, number)))
    low, high = draw(st.sampled_from([(None, None), (ends[0], None), (None, ends[1]), tuple(ends)]))
    control = draw(st.none() | findings(depth - 1)) if depth else None
    n = draw(st.none() | st.integers(0, 2**60))
    if draw(st.booleans()):
        return Finding(draw(texts), None, n=n, control=control, undefined=draw(texts) + "why")
    return Finding(draw(texts), draw(number), low, high, 0.9, n, draw(texts), control)


def _readable(value: str) -> str:
    return value.encode("utf-8", "replace").decode().replace("\0", "�")


def _readable_finding(item: Finding) -> Finding:
    told = {key: _readable(value) if isinstance(value, str) else value for key, value in vars(item).items()}
    return Finding(**{**told, "control": item.control and _readable_finding(item.control)})


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    items=st.lists(findings(), max_size=4, unique_by=lambda item: _readable(item.name)),
    summary=st.text(st.characters()).filter(lambda line: "\n" not in line),
    content=st.binary(max_size=2000),
    setting=st.text(st.characters()),
)
def test_any_finding_survives_the_round_trip(
    ledger: Ledger, items: list[Finding], summary: str, content: bytes, setting: str
) -> None:
    id = new_id("x")
    told = Findings(tuple(items), summary, {"a.parquet": content})
    run = RunRecord(id, "dice", {"s": setting}, 2**80, now(), 0.1, True, summary, {}, "c", {}, {}, Cost())
    ledger.add_run(run, told)
    assert ledger.findings(id) == tuple(_readable_finding(item) for item in items)
    assert ledger.artifact(id, "a.parquet") == content
    assert ledger.run(id).config == {"s": setting}
    assert ledger.run(id).seed == 2**80
    assert ledger.run(id).summary == _readable(summary)
