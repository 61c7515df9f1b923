"""Arms: intervals no narrower than the test items allow, paired differences, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import UsageError
from cutaway.finetuning.arms import Arm, Arms, gather, share
from cutaway.stats import mean_interval, wilson

RUNS = [
    {"none": {"right": 0.1, "loss": 2.0}, "new": {"right": 0.9, "loss": 1.0}},
    {"none": {"right": 0.2, "loss": 2.5}, "new": {"right": 0.8, "loss": 1.4}},
    {"none": {"right": 0.0, "loss": 2.2}, "new": {"right": 1.0, "loss": 1.3}},
]


def made(items: int = 50) -> Arms:
    return Arms(gather(RUNS, ["none"]), {"right": items})


def test_means_and_plain_intervals_are_those_of_the_repeats() -> None:
    arms = made()
    assert arms.mean("new", "right") == pytest.approx(0.9)
    plain, wanted = arms.interval("new", "loss"), mean_interval([1.0, 1.4, 1.3])
    assert (plain.value, plain.low, plain.high) == pytest.approx((wanted.value, wanted.low, wanted.high))
    gap = arms.difference("new", "none", "loss")
    by_hand = mean_interval([-1.0, -1.1, -0.9])
    assert (gap.value, gap.low, gap.high) == pytest.approx((by_hand.value, by_hand.low, by_hand.high))


def test_repeats_that_agree_do_not_make_a_share_certain() -> None:
    arms = Arms(gather([{"a": {"right": 1.0}, "b": {"right": 0.5}}] * 4), {"right": 20})
    own, items = arms.interval("a", "right"), wilson(20, 20)
    assert own.low <= items.low
    assert own.high == 1.0
    gap = arms.difference("a", "b", "right")
    assert 0 < gap.low < 0.5 < gap.high <= 1.0


def test_one_repeat_still_has_the_interval_of_its_items() -> None:
    arms = Arms(gather(RUNS[:1]), {"right": 50})
    assert arms.interval("none", "right").high == pytest.approx(wilson(5, 50).high)
    assert np.isnan(arms.interval("none", "loss").low)
    assert share("x", [0.5], 10).low == pytest.approx(wilson(5, 10).low)


def test_intervals_of_shares_stay_between_0_and_1() -> None:
    arms = Arms(gather([{"a": {"right": 0.0}}, {"a": {"right": 1.0}}]), {"right": 9})
    assert (arms.interval("a", "right").low, arms.interval("a", "right").high) == (0.0, 1.0)


def test_frame_file_chart_and_repr(tmp_path: Path) -> None:
    arms = made()
    frame = arms.to_frame()
    assert len(frame) == 12
    assert frame.query("arm == 'none' and measure == 'loss'")["value"].tolist() == [2.0, 2.5, 2.2]
    arms.save(tmp_path / "arms.json")
    assert json.loads((tmp_path / "arms.json").read_text())["arms"][0]["control"] is True
    chart = arms.chart(["right", "loss"], "what they reach")
    assert chart.x == ("none", "new")
    assert chart.series[1].y == pytest.approx(((2.0 + 2.5 + 2.2) / 3, 3.7 / 3))
    assert repr(arms).startswith("Arms(right: none 0.10 [")


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="did you mean 'none'"):
        made()["nonne"]
    with pytest.raises(UsageError, match="measure 'rigth'"):
        made().mean("none", "rigth")
    with pytest.raises(UsageError, match="different arms"):
        gather([{"a": {"x": 1.0}}, {"b": {"x": 1.0}}])
    with pytest.raises(UsageError, match="between 0 and 1"):
        Arms((Arm("a", {"right": (1.2,)}),), {"right": 9})
    assert gather([]) == ()
