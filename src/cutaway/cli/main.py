"""The `cutaway` command: arguments in, tables or JSON out. What it does lives in the rooms below."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cutaway.errors import CutawayError, UsageError


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Say a word when Ctrl-C comes before a result could be kept; Typer would leave without one."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted before there was a result; the same command uses what was kept", file=sys.stderr)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    help="Open a language model: explain one answer, keep the finding.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LedgerUrl = Annotated[
    str | None,
    typer.Option("--ledger", envvar="CUTAWAY_LEDGER", help="Database URL; default: a file in the cache folder."),
]


@app.command()
def models(as_json: Json = False) -> None:
    """List the catalogue: what is installed, where it comes from, checksum, licence."""
    from cutaway.cli.show import show_models
    from cutaway.model import catalogue

    show_models(catalogue(), as_json)


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="What to ask the model; '-' reads standard input.")],
    model: Annotated[str, typer.Option(help="Catalogue name, Hugging Face id, directory or GGUF file.")],
    outcome: Annotated[
        str, typer.Option(help="number, letter[:A,B], choice:x,y, boxed, regex:PATTERN or auto.")
    ] = "auto",
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page here.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in decoded tokens.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop adding rollouts after this time.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="100 rollouts from every boundary.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus mass.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Longest trace, in tokens.")] = 200,
    stop: Annotated[str, typer.Option(help="A text at which a trace ends.")] = "",
    seed: Annotated[int, typer.Option(help="Of the trace and of every rollout.")] = 0,
    delta: Annotated[float, typer.Option(help="Effects within +-delta count as none.")] = 0.2,
    fdr: Annotated[float, typer.Option(help="False-discovery rate of the anchors.")] = 0.05,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    embedder: Annotated[
        str, typer.Option(help="Groups alternatives by meaning; '' groups identical wordings only.")
    ] = "all-minilm-l6-v2",
    also: Annotated[
        str,
        typer.Option(help="categories, attention, suppression; with rollouts: importance, influence, forced; '' none."),
    ] = "categories,attention,suppression",
    rollouts: Annotated[int, typer.Option(help="Free rollouts at every boundary, where --also needs them.")] = 100,
    forcing: Annotated[str, typer.Option(help="Text that asks for the answer at once, for --also forced.")] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Reuse nothing that was sampled before.")] = False,
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """Explain one answer: which sentences decided it, and what the model would have said instead."""
    from cutaway.cli.show import show_explanation
    from cutaway.explain import explain as explain_answer
    from cutaway.explain import report_of_run
    from cutaway.study import get_study, parse_config

    given = {
        "prompt": sys.stdin.read().strip() if prompt == "-" else prompt,
        "model": model,
        "outcome": outcome,
        "raw": raw,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "stop": stop,
        "seed": seed,
        "tokens": tokens,
        "minutes": minutes,
        "exact": exact,
        "delta": delta,
        "fdr": fdr,
        "dtype": dtype,
        "embedder": embedder,
        "also": also,
        "rollouts": rollouts,
        "forcing": forcing,
    }
    config = parse_config(get_study("thought-anchors"), {k: str(v) for k, v in given.items() if v is not None})
    if report is not None:
        _check_writable(report)  # before the sampling, not after it
    with _ledger(ledger) as book, _bench(fresh) as lab:
        found = explain_answer(config, lab, book)
        if report is not None:
            _write(report, report_of_run(book, found.run))
    show_explanation(found, report, as_json)


@app.command()
def studies(
    study: Annotated[str | None, typer.Argument(help="Study id: its paper, status and settings.")] = None,
    as_json: Json = False,
    ledger: LedgerUrl = None,
) -> None:
    """List every system with its last calibration; or show one, with what can be set."""
    from cutaway.cli.show import show_studies, show_study
    from cutaway.ledger.calibrations import last_calibration
    from cutaway.study import get_study
    from cutaway.study import studies as all_studies

    with _ledger(ledger) as book:
        if study is not None:
            return show_study(get_study(study), last_calibration(book, study), as_json)
        known = all_studies()
        return show_studies([(each, last_calibration(book, each.id)) for each in known.values()], as_json)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="Study id; see `cutaway studies`.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, repeatable.")] = None,
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """Run one study and store what it found; running it again resumes."""
    from cutaway.cli.show import show_run
    from cutaway.ledger import record
    from cutaway.study import get_study, parse_config

    pairs: dict[str, str] = {}
    for each in settings or []:
        key, equals, value = each.partition("=")
        if not equals:
            raise UsageError(f"--set {each!r}: write key=value")
        pairs[key] = value
    config = parse_config(get_study(study), pairs)
    with _ledger(ledger) as book, _bench() as lab:
        made = record(book, study, config, lab)
        show_run(made, book.findings(made.id), book.artifacts(made.id), as_json)


@app.command()
def calibrate(
    study: Annotated[str, typer.Argument(help="Study id, or 'all'.")],
    trials: Annotated[int | None, typer.Option(help="Planted traces; default: the study's own number.")] = None,
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """Measure a study on planted truth and null; exits 1 when a requirement is missed."""
    from cutaway.cli.show import show_calibrations
    from cutaway.ledger.calibrations import record_calibration
    from cutaway.study import get_study
    from cutaway.study import studies as all_studies

    names = list(all_studies()) if study == "all" else [get_study(study).id]
    if trials is not None and trials < 1:
        raise UsageError(f"trials={trials}: must be at least 1")
    with _ledger(ledger) as book, _bench() as lab:
        done = [record_calibration(book, name, lab, trials) for name in names]
    show_calibrations(done, as_json)
    if not all(each.passed for each in done):
        raise typer.Exit(1)


@app.command()
def runs(
    study: Annotated[str | None, typer.Option(help="Only this study.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 20,
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """List the latest runs."""
    from cutaway.cli.show import show_runs

    with _ledger(ledger) as book:
        show_runs(book.runs(limit, study), as_json)


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Run id or its beginning.")],
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """Show one run: what it depended on, what it found, how its rechecks came out."""
    from cutaway.cli.show import show_run

    with _ledger(ledger) as book:
        found = book.run(run)
        show_run(found, book.findings(found.id), book.artifacts(found.id), as_json, book.replications(found.id))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run id or its beginning.")],
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    ledger: LedgerUrl = None,
) -> None:
    """Write the HTML page of a stored run."""
    from cutaway.explain import report_of_run

    with _ledger(ledger) as book:
        _write(out, report_of_run(book, book.run(run)))
    typer.echo(f"wrote {out}")


@app.command()
def recheck(
    run: Annotated[str, typer.Argument(help="Run id or its beginning.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Run again even if weights or data changed.")] = False,
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """Run a stored run again from nothing; names what changed. Exits 1 unless it is reproduced."""
    from cutaway.ledger import recheck as check_again

    with _ledger(ledger) as book, _bench() as lab:
        found = check_again(book, run, lab, anyway)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))
    if found.status != "reproduced":
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Run id or its beginning.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    ledger: LedgerUrl = None,
) -> None:
    """Write a run as JSON without private paths or names, ready to be shared."""
    from cutaway.ledger import export as export_run

    with _ledger(ledger) as book:
        text = json.dumps(export_run(book, run), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        _write(out, text)


@app.command()
def serve(
    model: Annotated[str | None, typer.Option(help="Catalogue name, Hugging Face id, directory or GGUF file.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder of a feature index to browse.")] = None,
    host: Annotated[str, typer.Option(help="Address; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="Token clients must give; or set CUTAWAY_TOKEN.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    vectors: Annotated[list[str] | None, typer.Option(help="NAME=FILE of vectors, repeatable.")] = None,
    edits: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE of edits, served as MODEL+NAME; repeatable.")
    ] = None,
    monitor: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER of a probe, repeatable.")] = None,
    ledger: LedgerUrl = None,
) -> None:
    """Serve the ledger's runs as pages and a model behind the OpenAI protocol; loopback only by default."""
    from cutaway.app.start import start

    start(
        model,
        index=index,
        host=host,
        port=port,
        token_file=token_file,
        dtype=dtype,
        ledger=ledger,
        vectors=vectors or (),
        edits=edits or (),
        monitors=monitor or (),
    )


@app.command()
def index(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, Hugging Face id, directory or GGUF file.")
    ] = "smollm2-135m-instruct",
    folder: Annotated[Path | None, typer.Option(help="Where the index goes; default: the cache folder.")] = None,
    corpus: Annotated[
        str, typer.Option(help="wikitext, shakespeare, a .txt, .jsonl or .parquet file, a folder, or OWNER/NAME.")
    ] = "wikitext",
    full: Annotated[bool, typer.Option("--full", help="All layers and 200,000 tokens: hours on two cores.")] = False,
    tokens: Annotated[int | None, typer.Option(help="Read so many tokens.")] = None,
    layers: Annotated[str, typer.Option(help="Whose neurons: 7,15,22; default: three, or with --full all.")] = "",
    site: Annotated[str, typer.Option(help="Where the dictionary reads; default: the middle of the model.")] = "",
    latents: Annotated[int | None, typer.Option(help="Of the dictionary.")] = None,
    graphs: Annotated[int | None, typer.Option(help="Per layer and dictionary, for the strongest units.")] = None,
    open_app: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the app when done.")] = True,
    port: Annotated[int, typer.Option(help="Of the app, on loopback.")] = 8000,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    ledger: LedgerUrl = None,
    as_json: Json = False,
) -> None:
    """Make a browsable index of neurons and of a dictionary trained on the way, and open the app over it."""
    from cutaway.app.start import need_web, start
    from cutaway.cli.show import show_index
    from cutaway.features.index.ready import index_model

    if open_app:
        need_web()
    with _bench() as lab:
        made = index_model(
            lab, model, folder, corpus=corpus, full=full, tokens=tokens, layers=layers, site=site, latents=latents,
            graphs=graphs, dtype=dtype,
        )  # fmt: skip
        opened = lab.model(model, dtype)
    show_index(made, as_json)
    if open_app:
        start(opened, index=made.index.folder, port=port, ledger=ledger)


def _ledger(url: str | None) -> Any:
    from cutaway.ledger import Ledger, default_url

    return Ledger(url if url is not None else default_url())


def _bench(fresh: bool = False) -> Any:
    from cutaway.cli.progress import bench

    return bench(fresh)


def _check_writable(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise CutawayError(f"cannot write {path}: no directory {folder}")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise CutawayError(f"cannot write {path}: {'it is a directory' if path.is_dir() else 'permission denied'}")


def _write(path: Path, text: str) -> None:
    # Written beside and renamed: a full disk leaves no half page under the wanted name.
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CutawayError(f"cannot write {path}: {error.strerror}") from error


def main() -> None:
    """Entry point: every expected failure is one line on standard error and an exit code."""
    # Nothing is fetched unless a Hugging Face id is given; the tokenizers' fork warning is noise here.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning make a model some ten times slower as soon as another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except CutawayError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
