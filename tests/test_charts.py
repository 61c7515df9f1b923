"""Charts as data."""

import json
import math

import pytest

from cutaway.charts import Chart, Heat, Series, charts_from_json, charts_json
from cutaway.errors import UsageError
from cutaway.study import Findings

LINE = Chart(
    "t", (1.0, 10.0), (Series("a", (0.5, None), (0.1, None), (0.9, None)), Series("b", (0.0, 0.0), control=True))
)
HEAT = Heat("h", ("r",), ("c", "d"), ((0.5, None),))


def test_charts_survive_json() -> None:
    assert charts_from_json(charts_json([LINE, HEAT])) == (LINE, HEAT)


def test_numbers_that_are_not_finite_are_gaps() -> None:
    assert Series("a", (math.nan, 1.0)).y == (None, 1.0)
    assert Heat("h", ("r",), ("c",), ((math.inf,),)).values == ((None,),)


def test_findings_keep_their_charts_as_an_artifact() -> None:
    kept = Findings((), "nothing", charts=(LINE,)).artifacts["charts.json"]
    assert json.loads(kept)[0]["title"] == "t"


def test_shapes_are_checked() -> None:
    with pytest.raises(UsageError, match="has 1 values for 2 x"):
        Chart("t", (1.0, 2.0), (Series("a", (1.0,)),))
    with pytest.raises(UsageError, match="1 rows of 2"):
        Heat("h", ("r",), ("c", "d"), ((1.0,),))
    with pytest.raises(UsageError, match="positive numbers"):
        Chart("t", (0.0, 1.0), (Series("a", (1.0, 2.0)),), log_x=True)
