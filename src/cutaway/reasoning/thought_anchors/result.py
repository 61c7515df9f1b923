"""What a thought-anchors run returns: the curve of answer probabilities along a trace, and its anchors."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Status = Literal["anchor", "no effect", "undecided"]
NO_ANSWER = "(none)"
OTHER = "(other)"


@dataclass(frozen=True)
class Alternative:
    """Something the model would have said instead of a sentence."""

    text: str
    """A typical wording: the first new sentence of the group's most central rollout."""
    count: int
    """Rollouts in the group."""
    share: float
    """Probability of this group among all continuations of the boundary, staying with the trace included."""
    answers: dict[str, float]
    """Share of each answer among the group's rollouts."""


@dataclass(frozen=True)
class AnchorMap:
    """Answer distribution at every sentence boundary of one trace, and which sentences moved it.

    Boundary ``i`` stands before sentence ``i``; boundary ``n`` after the last one. Sentence ``i`` moves the
    distribution from ``curve[i]`` to ``curve[i + 1]``.
    """

    prompt: str
    sentences: tuple[str, ...]
    """Texts that joined together give the whole trace, character for character."""
    spans: tuple[tuple[int, int], ...]
    """Token span [start, end) of each sentence, counted from the first token of the trace."""
    answers: tuple[str, ...]
    """Outcome labels, the trace's own answer first; '(none)' stands for rollouts without an answer."""
    curve: Float[np.ndarray, "boundary answer"]
    low: Float[np.ndarray, "boundary answer"]
    high: Float[np.ndarray, "boundary answer"]
    """Simultaneous band: all boundaries at once, at `level`."""
    effect: Float[np.ndarray, " sentence"]
    """Change of the trace's own answer's probability made by each sentence."""
    effect_low: Float[np.ndarray, " sentence"]
    effect_high: Float[np.ndarray, " sentence"]
    log_e: Float[np.ndarray, " sentence"]
    """Log e-value against "this sentence changes nothing"."""
    status: tuple[Status, ...]
    stay: Float[np.ndarray, " sentence"]
    """Probability that a rollout from the boundary repeats the sentence token for token."""
    draws: Int[np.ndarray, " sentence"]
    """Independent rollouts that leave the trace within each sentence."""
    alternatives: tuple[tuple[Alternative, ...], ...]
    control: int
    """Sentences "certified" when each one's own draws are compared with themselves; 0 is expected."""
    truncated: float
    """Share of rollouts cut at max_tokens."""
    unanswered: float
    """Share of rollouts without an answer."""
    decoded: int
    prefilled: int
    reused: int
    """Tokens decoded, prefilled and reused."""
    seconds: float
    estimator: Literal["deviation", "uniform"]
    level: float = 0.95
    fdr: float = 0.05
    complete: bool = True
    """False when a budget or Ctrl-C ended the run before every candidate was decided."""

    @property
    def anchors(self) -> tuple[int, ...]:
        """Indices of the certified sentences, largest effect first."""
        found = [i for i, status in enumerate(self.status) if status == "anchor"]
        return tuple(sorted(found, key=lambda i: -abs(self.effect[i])))
