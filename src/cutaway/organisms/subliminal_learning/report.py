"""What a run found, as findings, charts and a line to quote."""

from cutaway.charts import Chart, Series
from cutaway.organisms.subliminal_learning.toy import ARMS, Toy
from cutaway.organisms.subliminal_learning.transfer import ALL, CONTROL, Transfer
from cutaway.study import Finding


def findings(toy: Toy, found: Transfer | None) -> tuple[Finding, ...]:
    """Those of the toy, and of the language models where they were run."""
    return toy_findings(toy) + (() if found is None else transfer_findings(found))


def charts(toy: Toy, found: Transfer | None) -> tuple[Chart, ...]:
    """Accuracies of the toy; the trait's share by arm."""
    if found is None or not found.rates:
        return toy_charts(toy)
    arms = {arm: found.rate(arm) for arm in found.rates}
    value, low, high = (tuple(getattr(each, key) for each in arms.values()) for key in ("value", "low", "high"))
    base = tuple(float(found.base.mean()) for _ in arms)
    series = (Series("student", value, low, high), Series("base, untrained", base, control=True))
    note = f"{100 * found.share:.0f}% of the tokens are divergence tokens."
    return (*toy_charts(toy), Chart(f"Share of {found.trait}", tuple(arms), series, y_label="share", note=note))


def summarise(toy: Toy, found: Transfer | None) -> str:
    """One line."""
    text = toy_summary(toy)
    if found is None or ALL not in found.rates or CONTROL not in found.rates:
        return text
    verdict = "transferred" if found.shown else "no transfer shown"
    verdict += " (one student an arm cannot show it)" * (len(found.rates[ALL]) < 2)
    return f"{text}; language model: share of {found.trait} {found.rate(ALL)}, control {found.rate(CONTROL)}: {verdict}"


def transfer_findings(found: Transfer) -> tuple[Finding, ...]:
    """Shares by arm beside the control's, gains, and what of the transfer each arm keeps."""
    items = [Finding("divergence tokens", found.share, unit="of tokens")]
    control = Finding.of(f"share of {found.trait}, {CONTROL}", found.rate(CONTROL)) if CONTROL in found.rates else None
    items += [Finding.of(f"share of {found.trait}, {a}", found.rate(a), control=control) for a in found.rates]
    for arm in found.rates:
        if arm == CONTROL or CONTROL not in found.rates:
            continue
        items.append(Finding.of(f"gain over control, {arm}", found.gain(arm)))
        kept = found.kept(arm) if arm != ALL and found.shown else None
        if kept is not None:
            items.append(Finding.of(f"transfer kept, {arm}", kept))
        elif arm != ALL:
            few = "; one student an arm cannot show it, ask for more repeats" * (len(found.rates[ALL]) < 2)
            why = f"transfer from all tokens is not shown, so there is nothing to keep{few}"
            items.append(Finding(f"transfer kept, {arm}", None, undefined=why))
    return tuple(items)


def toy_findings(toy: Toy) -> tuple[Finding, ...]:
    """Accuracy by arm, the same start with the other beside it, and their gap."""
    items = []
    for arm in toy.accuracies:
        other = arm.replace("same", "other")
        beside = None
        if other != arm and other in toy.accuracies:
            beside = Finding.of(f"accuracy, {other}", toy.interval(other))
        items.append(Finding.of(f"digits: accuracy, {arm}", toy.interval(arm), control=beside))
    if toy.gap is None:
        items.append(Finding("digits: gap of the starts", None, undefined="stopped before both arms were trained"))
    else:
        items.append(Finding.of("digits: gap of the starts", toy.gap))
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
