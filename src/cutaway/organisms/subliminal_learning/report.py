"""What a run found, as findings, charts and a line to quote."""

import math

from cutaway.charts import Chart, Series
from cutaway.organisms.subliminal_learning.toy import ARMS, Toy
from cutaway.stats import Interval
from cutaway.study import Finding


def finding(name: str, interval: Interval, *, unit: str = "", control: Finding | None = None) -> Finding:
    """Return an interval as a finding; ends that are not known stay open."""
    low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
    return Finding(name, interval.value, low, high, interval.level, interval.n, unit, control)


def toy_findings(toy: Toy) -> tuple[Finding, ...]:
    """Accuracy by arm, the same start with the other beside it, and their gap."""
    items = []
    for arm in toy.accuracies:
        other = arm.replace("same", "other")
        beside = None
        if other != arm and other in toy.accuracies:
            beside = finding(f"accuracy, {other}", toy.interval(other))
        items.append(finding(f"digits: accuracy, {arm}", toy.interval(arm), control=beside))
    if toy.gap is None:
        items.append(Finding("digits: gap of the starts", None, undefined="stopped before both arms were trained"))
    else:
        items.append(finding("digits: gap of the starts", toy.gap))
    return tuple(items)


def toy_charts(toy: Toy) -> tuple[Chart, ...]:
    """One bar an arm."""
    found = {arm: toy.interval(arm) for arm in toy.accuracies}
    controls = {arm for arm in found if "other" in arm or arm == "untrained"}
    series = tuple(
        Series(
            name,
            tuple(each.value if (arm in controls) == back else None for arm, each in found.items()),
            tuple(each.low if (arm in controls) == back else None for arm, each in found.items()),
            tuple(each.high if (arm in controls) == back else None for arm, each in found.items()),
            control=back,
        )
        for name, back in (("accuracy", False), ("accuracy, control", True))
    )
    note = "Students saw noise only. From another start the auxiliary outputs teach nothing."
    return (Chart("Digits learnt", tuple(found), series, y_label="accuracy on unseen digits", note=note),)


def toy_summary(toy: Toy) -> str:
    """One line."""
    if toy.gap is None:
        return "stopped before both starts were compared"
    same, other = (toy.interval(arm) for arm in ARMS[:2])
    return (
        f"after {toy.config.steps} steps on noise and three meaningless outputs: accuracy {same} from the teacher's"
        f" start, {other} from another (gap {toy.gap}, {toy.config.models} networks)"
    )
