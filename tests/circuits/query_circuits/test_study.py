"""The figures of a search by hand, and the study from drawing queries to the page's data."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest

from cutaway.charts import charts_from_json
from cutaway.circuits.graph import CircuitGraph, Header
from cutaway.circuits.query_circuits import CHOSEN, QueryCircuits, Searched, areas, halfway
from cutaway.circuits.query_circuits.calibration import rates
from cutaway.circuits.query_circuits.study import QueryCircuitsStudy
from cutaway.circuits.view import CircuitView
from cutaway.circuits.wiring import Wiring
from cutaway.errors import UsageError
from cutaway.model import Model
from cutaway.study import Lab, parse_config

SIZES = (10, 20, 40)


def searched(name: str, group: str, single: list[float], wordings: list[float], held: list[float]) -> Searched:
    wiring = Wiring(1, 1, 1)
    graph = CircuitGraph.whole(Header("m", "f", wiring, "eap-ig"), np.zeros(wiring.legal.shape))
    zero = np.zeros(3)
    ndf = {"single": np.array(single), "wordings": np.array(wordings), "random": zero, "nested": np.array(single)}
    return Searched(
        name=name,
        group=group,
        full=2.0,
        none=0.0,
        candidates={"single": np.array([single])},
        winners={"single": np.zeros(3, int)},
        ndf=ndf,
        kept={way: np.array([8, 16, 32]) for way in ndf},
        held_out={"another corruption": {way: np.array(held) for way in ndf}},
        between={"single": np.array([0.1, 0.2])},
        complement=np.array([1.0, 0.5, 0.0]),
        graph=graph,
        masks=np.zeros((3, *wiring.legal.shape), dtype=bool),
    )


@pytest.fixture
def found() -> QueryCircuits:
    nan = float("nan")
    rows = (
        searched("one", "a", [0.0, 0.4, 0.8], [0.2, 0.6, 0.8], [0.1, 0.5, 0.7]),
        searched("two", "b", [0.2, 0.2, 0.2], [0.2, 0.4, 0.6], [0.3, 0.3, 0.3]),
        searched("none", "b", [nan] * 3, [nan] * 3, [nan] * 3),
    )
    return QueryCircuits(rows, SIZES, (14, 28))


def test_figures_by_hand(found: QueryCircuits) -> None:
    assert found.undefined == 1
    assert [each.value for each in found.curve("single")] == pytest.approx([0.1, 0.3, 0.5])
    assert [each.value for each in found.gain("wordings")] == pytest.approx([0.1, 0.2, 0.2])
    # Trapezoids: (0 + .4) / 2 * 10 + (.4 + .8) / 2 * 20 = 14 of 30; the second is flat.
    assert areas(SIZES, found.values("single")[:2]) == pytest.approx([14 / 30, 0.2])
    assert found.area("single").value == pytest.approx((14 / 30 + 0.2) / 2)
    assert areas((5,), np.array([[0.3]])) == pytest.approx([0.3])
    assert found.smallest("wordings", 0.6) == (20, 40)
    assert found.smallest("single", 0.6) == (40, None)
    assert (found.reached("single", 0.6).value, found.reached("single", 0.6).n) == (0.5, 2)
    assert [each.value for each in halfway(QueryCircuits(found.queries[:2], SIZES, (14, 28)), "single")] == [0.1, 0.2]
    assert [each.value for each in found.complement()] == [1.0, 0.5, 0.0]
    assert [each.value for each in found.curve("single", "another corruption")] == pytest.approx([0.2, 0.4, 0.5])
    assert found.curve("single")[0].n == 2  # groups
    band = found.curve("single")[0]
    assert (band.low, band.high) == (0.0, pytest.approx(0.2))
    for way, where in (("singel", CHOSEN), ("single", "anoter corruption")):
        with pytest.raises(UsageError, match="did you mean"):
            found.values(way, where)
    assert len(found.to_frame()) == 3 * 2 * 4 * 3
    assert json.loads(json.dumps(found.to_dict()))["queries"][2]["ndf"]["single"] == [None] * 3
    assert "'wordings' on 'another corruption'" in repr(found)


class OneModel(Lab):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.given = model

    def model(self, spec: Any, dtype: str = "auto") -> Model:
        return self.given


@pytest.mark.parametrize("task", ["indirect objects", "sums"])
def test_the_study_from_queries_to_page(speaker: Model, task: str) -> None:
    study = QueryCircuitsStudy()
    given = {"task": task, "queries": "2", "wordings": "3", "sizes": "[5, 40, 150]", "steps": "3", "circuits": "2"}
    found = study.run(parse_config(study, given), OneModel(speaker))
    assert len(found.result.queries) == 2
    assert all(query.full > 0 for query in found.result.queries)
    items = {item.name: item for item in found.items}
    main = items["mean NDF over sizes, wordings, another corruption"]
    assert main.control is not None
    assert main.control.value is not None
    assert main.control.value < main.value
    assert "another corruption" in found.summary
    assert {chart.title for chart in charts_from_json(found.artifacts["charts.json"])} >= {
        "How well circuits of growing size reproduce the answer",
        "Gain of the best wording over the single query",
    }
    view = CircuitView.from_dict(json.loads(found.artifacts["circuit.json"]))
    assert "".join(view.tokens) == found.result.queries[0].name
    rows = list(csv.DictReader(io.StringIO(found.artifacts["edges.csv"].decode())))
    assert {row["query"] for row in rows} == {query.name for query in found.result.queries}
    assert {"circuit-1.safetensors", "circuit-2.safetensors"} <= found.artifacts.keys()
    assert "circuit-3.safetensors" not in found.artifacts


def test_a_stored_circuit_is_the_winner(speaker: Model, tmp_path: Any) -> None:
    study = QueryCircuitsStudy()
    config = parse_config(
        study, {"queries": "1", "wordings": "1", "sizes": "[5, 150]", "steps": "2", "wrong_too": "true"}
    )
    found = study.run(config, OneModel(speaker))
    path = tmp_path / "circuit.safetensors"
    path.write_bytes(found.artifacts["circuit-1.safetensors"])
    loaded, query = CircuitGraph.load(path), found.result.queries[0]
    assert any(np.array_equal(loaded.mask, mask) for mask in query.masks)
    assert np.allclose(loaded.scores, query.graph.scores)
    assert loaded.header.settings["steps"] == 2


def test_a_model_that_is_always_wrong_is_said_so(speaker: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from cutaway.circuits.pairs import Pairs

    study = QueryCircuitsStudy()
    monkeypatch.setattr(Pairs, "value", lambda self, logits: -logits.float().abs().sum(-1))
    with pytest.raises(UsageError, match="answers none of 3 indirect objects queries rightly; set wrong_too"):
        study.run(parse_config(study, {"queries": "1", "wordings": "0", "sizes": "[5, 150]"}), OneModel(speaker))


def test_calibration_passes_on_few_models() -> None:
    found = {rate.name: rate for rate in rates(1)}
    assert all(rate.passed for rate in found.values()), found
    assert found["value circuit"].trials == 1


@pytest.mark.slow  # thirty models, about a minute
def test_calibration_passes() -> None:
    found = QueryCircuitsStudy().calibrate(Lab())
    assert found.passed, found
