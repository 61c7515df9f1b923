"""What a training run leaves behind."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cutaway.model import Model
from cutaway.training.checkpoint import Provenance, checkpoints

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Step:
    """What one optimiser step measured."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the step's weight, before the update."""
    terms: Mapping[str, float]
    """The objective's own, as means."""
    tokens: int
    """Read in this step, padding left out."""
    gradient: float
    """Norm before clipping."""
    rate: float
    seconds: float
    """Spent in steps since the run began."""
    left: float
    """Seconds that the remaining steps will take at the pace so far."""


@dataclass(frozen=True)
class Probed:
    """What the probes saw after ``step`` steps."""

    step: int
    values: Mapping[str, float]
    """By ``probe.key``."""


@dataclass(frozen=True)
class Trained:
    """A trained model and how it came about."""

    model: Model
    history: tuple[Step, ...]
    probed: tuple[Probed, ...]
    averages: Mapping[str, Mapping[str, Tensor]]
    """Moving averages of the trained weights, by the average's name; see `swapped`."""
    provenance: Provenance
    folder: Path | None = None
    complete: bool = True
    """False when Ctrl-C ended it early."""

    def __repr__(self) -> str:
        if not self.history:
            return "Trained(0 steps)"
        first, last = self.history[0], self.history[-1]
        tokens = sum(step.tokens for step in self.history)
        early = "" if self.complete else ", ended early"
        loss = f"loss {first.loss:.3f} -> {last.loss:.3f}"
        return f"Trained({last.step} steps, {loss}, {tokens:,} tokens, {last.seconds:.0f} s{early})"

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Checkpoints of the trained weights, by step."""
        return {} if self.folder is None else checkpoints(self.folder)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a step, the objective's terms as columns."""
        import pandas as pd

        rows = [asdict(step) for step in self.history]
        return pd.DataFrame([{**row, **row.pop("terms")} for row in rows])

    def probe_frame(self) -> "pd.DataFrame":
        """Return one row a probed step."""
        import pandas as pd

        return pd.DataFrame([{"step": each.step, **each.values} for each in self.probed])

    def to_dict(self) -> dict[str, Any]:
        """Return history, probes and provenance as JSON-able data; weights are in the checkpoints."""
        return {
            "complete": self.complete,
            "history": [asdict(step) for step in self.history],
            "probed": [asdict(each) for each in self.probed],
            "provenance": self.provenance.to_dict(),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
