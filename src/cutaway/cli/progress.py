"""The bench with a progress bar: what is being done, how far it is, how long it will take."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cutaway.study import Lab, Progress


@contextmanager
def bench(fresh: bool = False) -> Iterator[Lab]:
    """A lab whose progress shows on standard error while the block runs."""
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, object] = {}

    def show(progress: Progress) -> None:
        unit = progress.unit or "steps"
        if unit not in tasks:
            tasks[unit] = bar.add_task(unit, total=progress.total)
        bar.update(tasks[unit], completed=progress.done, total=progress.total)  # type: ignore[arg-type]

    with bar:
        yield Lab(progress=show, fresh=fresh)
