"""Tables and JSON for the terminal. Text from models and prompts is printed as text, never as markup."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.study import Calibration, Finding, Rate, Study

if TYPE_CHECKING:
    from cutaway.explain import Explanation
    from cutaway.features.index import Ready
    from cutaway.ledger import ArtifactRecord, Recheck, RunRecord
    from cutaway.model import Entry
    from cutaway.reasoning.thought_anchors.result import AnchorMap

BAR = 20
WIDE = 110


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: Any) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in cells))


def _json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def show_models(entries: "Sequence[Entry]", as_json: bool) -> None:
    """The catalogue."""
    rows = [
        {
            "name": each.name,
            "kind": each.kind,
            "installed": each.installed,
            "packages": list(each.packages),
            "sha256": each.sha256,
            "licence": each.licence,
            "note": each.note,
            "install": each.hint,
        }
        for each in entries
    ]
    if as_json:
        return _json(rows)
    table = _table("name", "kind", "installed", "licence", "sha256", "note")
    for row in rows:
        installed = "yes" if row["installed"] else f"no: {row['install']}"
        _row(table, row["name"], row["kind"], installed, row["licence"], str(row["sha256"])[:12], row["note"])
    Console().print(table)
    return None


def show_explanation(found: "Explanation", report: Path | None, as_json: bool) -> None:
    """One answer: conclusion, a row a sentence, alternatives at the anchors, cost."""
    anchors, run = found.anchors, found.run
    if as_json:
        return _json({"run": run.to_dict(), "known": found.known, "anchors": anchors.to_dict()})
    from cutaway.explain import conclude

    console, words = Console(), conclude(anchors)
    console.print(Text(words.headline, style="bold"))
    for line in (*words.support, *words.cautions):
        console.print(Text(line))
    console.print(_sentence_table(anchors, console.width))
    for i in anchors.anchors:
        console.print(Text(f"\nInstead of sentence {i + 1} the model would have said:", style="bold"))
        for other in anchors.alternatives[i]:
            ends = ", ".join(f"{answer} {share:.0%}" for answer, share in other.answers.items())
            console.print(Text(f"  {other.share:4.0%}  {' '.join(other.text.split())}  -> {ends}"))
    console.print(
        Text(
            f"\n{anchors.decoded} tokens decoded, {anchors.prefilled} prefilled, {anchors.reused} reused in "
            f"{anchors.seconds:.0f} s; control: {anchors.control} certified against itself; run {run.id}"
            + (" (from the ledger; nothing sampled)" if found.known else "")
        )
    )
    if report is not None:
        console.print(Text(f"report: {report}"))
    return None


def _sentence_table(anchors: "AnchorMap", width: int) -> Table:
    """A row a sentence; a narrow terminal goes without the bars and the counts, so that the text can be read."""
    wide = width >= WIDE
    extra = ("", "draws") if wide else ()
    table = _table("", "P after", "effect", "95%", "verdict", *extra, "sentence")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for i, sentence in enumerate(anchors.sentences):
        after = anchors.curve[i + 1, 0]
        style = "bold green" if anchors.status[i] == "anchor" else ""
        bar = Text("█" * round(after * BAR), style=style or "dim")
        _row(
            table,
            i + 1,
            f"{after:.2f}",
            f"{anchors.effect[i]:+.2f}",
            f"{anchors.effect_low[i]:+.2f} to {anchors.effect_high[i]:+.2f}",
            Text(anchors.status[i], style=style),
            *((bar, anchors.draws[i]) if wide else ()),
            " ".join(sentence.split()),
        )
    return table


def show_studies(rows: "Sequence[tuple[Study[Any], RunRecord | None]]", as_json: bool) -> None:
    """Every system with its last calibration."""
    if as_json:
        return _json([_study(each, last) for each, last in rows])
    table = _table("id", "what it does", "last calibration")
    table.columns[0].no_wrap = True
    for each, last in rows:
        _row(table, each.id, each.title, _calibrated(last))
    console = Console()
    console.print(table)
    console.print(Text("\n`cutaway studies ID` names a system's paper, its status and its settings."))
    return None


def show_study(study: Study[Any], last: "RunRecord | None", as_json: bool) -> None:
    """One system: its paper, how far it is, and what can be set."""
    about = _study(study, last)
    if as_json:
        return _json(about)
    console = Console()
    console.print(Text(f"{study.id}: {study.title}", style="bold"))
    for name, value in (("paper", study.paper), ("status", study.status), ("last calibration", _calibrated(last))):
        console.print(Text(f"{name}: {value}"))
    table = _table("setting", "default", "meaning")
    for name, each in about["settings"].items():
        default = _value(each["default"]) if "default" in each else "(needed)"
        choices = f" One of {', '.join(map(str, each['enum']))}." if "enum" in each else ""
        _row(table, name, default, each.get("description", "").replace("``", "") + choices)
    console.print(table)
    console.print(Text(f"\ncutaway run {study.id} --set setting=value"))
    return None


def _study(study: Study[Any], last: "RunRecord | None") -> dict[str, Any]:
    return {
        "id": study.id,
        "title": study.title,
        "paper": study.paper,
        "status": study.status,
        "settings": study.Config.model_json_schema()["properties"],
        "calibration": None if last is None else last.to_dict(),
    }


def _calibrated(last: "RunRecord | None") -> str:
    return "never" if last is None else f"{last.summary.rsplit(' ', 1)[-1]} {last.started[:10]}"


def _value(value: Any) -> str:
    """A default as ``--set`` takes it."""
    if isinstance(value, str):
        return value or '""'
    return ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


def show_runs(found: "Sequence[RunRecord]", as_json: bool) -> None:
    """The latest runs."""
    if as_json:
        return _json([run.to_dict() for run in found])
    console = Console()
    for run in found:
        started = run.started[:16].replace("T", " ")
        head = f"{run.id}  {started}  {run.state:<8}  {run.seconds:>6.0f} s  {run.study}"
        console.print(Text(head, no_wrap=True, overflow="ellipsis"))
        console.print(Padding(Text(run.summary), (0, 0, 0, len(run.id) + 2)))
    return None


def show_index(made: "Ready", as_json: bool) -> None:
    """A feature index that is ready to be browsed."""
    index = made.index
    sources = [{"name": each.name, "kind": each.kind, "units": each.units} for each in index.sources]
    about = {"folder": str(index.folder), "model": index.model, "units": index.n_units, "tokens": index.about["tokens"]}
    if as_json:
        return _json({**about, "sources": sources, "new_graphs": made.graphs})
    console = Console(soft_wrap=True)
    console.print(Text(f"{index.folder}: {index.n_units:,} units over {about['tokens']:,} tokens", style="bold"))
    for each in sources:
        console.print(Text(f"  {each['kind']} {each['name']}: {each['units']:,}"))
    console.print(Text(f"  new graphs: {made.graphs}"))
    return None


def show_run(
    run: "RunRecord",
    items: Sequence[Finding],
    files: "Sequence[ArtifactRecord]",
    as_json: bool,
    rechecks: "Sequence[Recheck]" = (),
) -> None:
    """One run in full."""
    if as_json:
        return _json(
            {
                "run": run.to_dict(),
                "findings": [item.to_dict() for item in items],
                "artifacts": [file.to_dict() for file in files],
                "rechecks": [each.to_dict() for each in rechecks],
            }
        )
    console = Console()
    console.print(Text(f"{run.id}  {run.study}  {run.started[:19]}  {run.state}  {run.seconds:.0f} s"))
    console.print(Text(run.summary, style="bold"))
    for name, value in {**run.config, **run.inputs, "code": run.code}.items():
        console.print(Text(f"  {name}: {value}", style="dim"))
    for item in items:
        control = f"  (control: {item.control})" if item.control else ""
        console.print(Text(f"  {item}{control}"))
    for file in files:
        console.print(Text(f"  file {file.name}  {file.size} bytes  sha256 {file.sha256[:12]}"))
    for each in rechecks:
        console.print(Text(f"  recheck {each.made[:19]}: {each}"))
    return None


def _at_most(rate: Rate) -> str:
    return f"<= {rate.at_most}" if rate.at_most is not None else ""


def show_calibrations(done: Sequence[Calibration], as_json: bool) -> None:
    """Measured rates with their requirement."""
    if as_json:
        return _json([each.to_dict() for each in done])
    for each in done:
        verdict = "passed" if each.passed else "FAILED"
        table = _table("rate", "measured", "95%", "required", "", "what", title=f"{each.study}: {verdict}")
        for rate in each.rates:
            bounds = (f">= {rate.at_least}" if rate.at_least is not None else "", _at_most(rate))
            required = ", ".join(filter(None, bounds)) or "no bar"
            _row(
                table,
                rate.name,
                f"{rate.rate:.3f} ({rate.hits}/{rate.trials})",
                f"[{rate.low:.3f}, {rate.high:.3f}]",
                required,
                "ok" if rate.passed else "missed",
                rate.what,
            )
        Console().print(table)
    return None
