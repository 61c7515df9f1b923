"""The study contract: findings that cannot be nonsense, rates with exact intervals, a strict registry."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from scipy.stats import binomtest

import cutaway.study as room
from cutaway.errors import UsageError
from cutaway.stats import Interval
from cutaway.study import (
    Calibration,
    Finding,
    Findings,
    Lab,
    Progress,
    Rate,
    Study,
    StudyConfig,
    get_study,
    paper_table,
    parse_config,
    studies,
    study,
)


class Coin(StudyConfig):
    model: str | None = None
    """Model to toss with."""
    tosses: int = Field(10, ge=1)
    """How many."""
    bias: float = 0.5
    """Chance of heads."""
    side: Literal["heads", "tails"] = "heads"
    """What to count."""
    weights: tuple[float, ...] = ()
    """One per toss."""
    label: str = ""
    """Free text."""
    loud: bool = False
    """Say so."""


class Toss(Study[Coin]):
    id: ClassVar[str] = "coin-toss"
    title: ClassVar[str] = "counts heads | tails"
    paper: ClassVar[str] = "Coins (arXiv:2506.19143)"
    Config: ClassVar[type[BaseModel]] = Coin

    def run(self, config: Coin, lab: Lab) -> Findings:
        lab.progress(Progress(1, 1, "toss"))
        return Findings((Finding("heads", 0.5, 0.4, 0.6, n=config.tosses),), "half heads")

    def calibrate(self, lab: Lab, trials: int | None = None) -> Calibration:
        return Calibration(self.id, (Rate("recall", 9, 10, at_least=0.9),), 0.1)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    studies()  # one imported while the registry is patched would be lost to later tests
    fresh: dict[str, Any] = {}
    monkeypatch.setattr(room, "_registry", fresh)
    return fresh


def test_finding_prints_value_interval_level_n_and_unit() -> None:
    assert str(Finding("effect", 0.314, 0.2, None, n=12, unit="nats")) == (
        "effect: 0.314 nats [0.2, open] at 0.95, n=12"
    )
    assert str(Finding("effect", None, undefined="no rollout answered")) == ("effect: undefined (no rollout answered)")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_finding_without_a_number_needs_a_reason_and_stays_json(value: float | None) -> None:
    with pytest.raises(UsageError, match=r"'x'.*reason"):
        Finding("x", value)
    kept = Finding("x", value, undefined="division by zero")
    assert json.loads(json.dumps(kept.to_dict(), allow_nan=False))["value"] is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"value": 1.0, "undefined": "why"}, "contradicts"),
        ({"value": 1.0, "low": 2.0, "high": 1.0}, "low=2.0"),
        ({"value": 1.0, "low": math.nan}, "open end"),
        ({"value": 1.0, "level": 95.0}, "level=95"),
    ],
)
def test_contradictory_findings_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Finding("x", **given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"items": (Finding("a", 1.0), Finding("a", 2.0))}, "'a' appears twice"),
        ({"summary": "two\nlines"}, "several lines"),
        ({"artifacts": {"map.pkl": b""}}, "map.pkl"),
        ({"artifacts": {"../map.json": b""}}, "map.json"),
        ({"inputs": {"model": "ab"}}, "weights:<name>"),
    ],
)
def test_bad_findings_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Findings(**{"items": (), "summary": "", **given})


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rate_interval_is_clopper_pearson(counts: tuple[int, int]) -> None:
    hits, trials = counts
    exact = binomtest(hits, trials).proportion_ci(0.95, "exact")
    rate = Rate("r", hits, trials)
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_passing_is_by_the_point_rate_and_an_empty_calibration_has_not_passed() -> None:
    good, bad = Rate("recall", 9, 10, at_least=0.9), Rate("false", 2, 10, at_most=0.1)
    assert good.passed
    assert good.low < 0.9
    assert not bad.passed
    assert Calibration("s", (good,), 1.0).passed
    assert not Calibration("s", (good, bad), 1.0).passed
    assert not Calibration("s", (), 1.0).passed
    told = json.loads(json.dumps(Calibration("s", (good, bad), 1.0, {"model": "m"}).to_dict()))
    assert told["passed"] is False
    assert told["rates"][1]["rate"] == 0.2
    with pytest.raises(UsageError, match="3 hits in 2"):
        Rate("r", 3, 2)


def test_registry_refuses_doubles_bad_ids_and_lax_configs(registry: dict[str, Any]) -> None:
    study(Toss)
    assert list(registry) == ["coin-toss"]
    with pytest.raises(RuntimeError, match=r"Toss'> and .*Again'>"):
        study(type("Again", (Toss,), {}))
    with pytest.raises(RuntimeError, match="kebab-case"):
        study(type("Shout", (Toss,), {"id": "Coin_Toss"}))
    with pytest.raises(RuntimeError, match="frozen"):
        study(type("Lax", (Toss,), {"id": "lax", "Config": BaseModel}))


def test_an_unknown_study_is_answered_with_the_nearest(registry: dict[str, Any]) -> None:
    study(Toss)
    assert get_study("coin-toss").title.startswith("counts")
    with pytest.raises(UsageError, match=r"no study 'coin-tos'; did you mean 'coin-toss'"):
        get_study("coin-tos")


def test_every_study_of_the_package_is_found_and_sorted() -> None:
    found = studies()
    files = {path.parent.name.replace("_", "-") for path in Path(room.__file__).parent.glob("*/*/study.py")}
    assert list(found) == sorted(found)
    assert files <= set(found)


def test_settings_are_read_as_their_fields_types() -> None:
    given = {
        "model": "null",
        "tosses": "3",
        "bias": "0.25",
        "side": "tails",
        "weights": "[1, 2.5]",
        "label": "12",
        "loud": "true",
    }
    assert parse_config(Toss(), given) == Coin(
        model=None, tosses=3, bias=0.25, side="tails", weights=(1.0, 2.5), label="12", loud=True
    )
    assert parse_config(Toss(), {"label": "null"}).label == "null"
    assert parse_config(Toss(), {"weights": "1, 2.5"}).weights == (1.0, 2.5)
    assert parse_config(Toss(), {"weights": "3"}).weights == (3.0,)
    assert parse_config(Toss(), {"weights": ""}).weights == ()
    assert parse_config(Toss(), {}) == Coin()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"toses": "3"}, r"toses=3: coin-toss has no setting 'toses'; did you mean 'tosses'"),
        ({"tosses": "many"}, r"coin-toss: tosses=many: .*integer"),
        ({"tosses": "0", "side": "edge"}, r"tosses=0: .*; side=edge: .*'heads'"),
        ({"weights": "[1"}, r"weights=\[1: "),
        ({"weights": "1,two"}, r"weights=1,two: .*number"),
    ],
)
def test_bad_settings_become_one_line(given: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named) as caught:
        parse_config(Toss(), given)
    assert "\n" not in str(caught.value)


def test_the_lab_follows_the_cache_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUTAWAY_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Lab().home == Path.home() / ".cache" / "cutaway"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Lab().home == tmp_path / "cutaway"
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "own"))
    assert Lab().home == tmp_path / "own"


def test_an_estimate_becomes_a_finding_with_open_ends_or_a_reason() -> None:
    control = Finding("control", 0.0)
    found = Finding.of("gain", Interval(0.2, float("nan"), 0.5, 7, 0.9), unit="nats", control=control)
    assert found == Finding("gain", 0.2, None, 0.5, 0.9, 7, "nats", control)
    none = Finding.of("gain", Interval(*[float("nan")] * 3, 0, 0.9), n=3, undefined="nobody asked")
    assert none == Finding("gain", None, level=0.9, n=3, undefined="nobody asked")
    missing = Finding.of("gain", None, control=control, undefined="nobody asked")
    assert missing == Finding("gain", None, n=0, control=control, undefined="nobody asked")


def test_a_fresh_lab_keeps_no_activations(tmp_path: Path) -> None:
    assert Lab(home=tmp_path).activations == tmp_path / "activations"
    assert Lab(home=tmp_path, fresh=True).activations is None


def test_trees_stay_at_home_and_a_fresh_labs_trees_vanish(tmp_path: Path) -> None:
    kept = Lab(home=tmp_path).tree_folder("abc")
    assert kept == tmp_path / "trees" / "abc"
    assert kept.is_dir()
    lab = Lab(home=tmp_path, fresh=True)
    scratch = lab.tree_folder("abc")
    assert scratch.is_dir()
    assert scratch == lab.tree_folder("abc")
    assert tmp_path not in scratch.parents
    del lab
    assert not scratch.exists()
    with pytest.raises(UsageError, match="of trees"):
        Lab(home=tmp_path).tree_folder("../out")


def test_the_table_of_systems_links_papers_and_keeps_its_columns() -> None:
    link = "[arXiv:2506.19143](https://arxiv.org/abs/2506.19143)"
    row = rf"| `coin-toss` | counts heads \| tails | Coins ({link}) |  |"
    assert paper_table([Toss()]).splitlines()[2] == row


def test_importing_the_contract_loads_no_torch() -> None:
    code = "import sys, cutaway.study; sys.exit('torch' in sys.modules or 'cutaway.ledger' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
