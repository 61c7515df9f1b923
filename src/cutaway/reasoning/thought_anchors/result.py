"""What a thought-anchors run returns: the curve of answer probabilities along a trace, and its anchors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from cutaway.errors import CutawayError
from cutaway.reasoning.view import Alternative, Links, Numbers, TraceView, Track

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Status = Literal["anchor", "no effect", "undecided"]
NO_ANSWER = "(none)"
OTHER = "(other)"


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
    """Interval of each effect by itself at `level`; for certified ones at the level that allows for selection."""
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
    """False when a time limit or Ctrl-C ended the run before its tokens were spent or every sentence decided."""

    @property
    def anchors(self) -> tuple[int, ...]:
        """Indices of the certified sentences, largest effect first."""
        found = [i for i, status in enumerate(self.status) if status == "anchor"]
        return tuple(sorted(found, key=lambda i: -abs(self.effect[i])))

    def __repr__(self) -> str:
        best = self.anchors[0] if self.anchors else None
        if best is None:
            return f"AnchorMap({len(self.sentences)} sentences, answer {self.answers[0]!r}, no anchor certified)"
        low, high = self.effect_low[best], self.effect_high[best]
        return (
            f"AnchorMap({len(self.sentences)} sentences, answer {self.answers[0]!r}, {len(self.anchors)} certified, "
            f"largest: sentence {best + 1} {self.effect[best]:+.2f} [{low:.2f}, {high:.2f}])"
        )

    def to_frame(self) -> "pd.DataFrame":
        """One row a sentence: text, curve before and after, effect with interval, verdict, draws."""
        import pandas as pd

        return pd.DataFrame(
            {
                "sentence": self.sentences,
                "before": self.curve[:-1, 0],
                "after": self.curve[1:, 0],
                "effect": self.effect,
                "effect_low": self.effect_low,
                "effect_high": self.effect_high,
                "log_e": self.log_e,
                "status": self.status,
                "stay": self.stay,
                "draws": self.draws,
            }
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Curve of every answer with its band; certified sentences are shaded. Needs the ``plots`` extra."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise CutawayError("plots need matplotlib; run: pip install 'cutaway[plots]'") from error
        ax = ax if ax is not None else plt.subplots(figsize=(8, 3))[1]
        x = np.arange(len(self.curve))
        for i in self.anchors:
            ax.axvspan(i, i + 1, color="0.9")
        for a, answer in enumerate(self.answers):
            line = ax.plot(x, self.curve[:, a], label=answer)[0]
            ax.fill_between(x, self.low[:, a], self.high[:, a], color=line.get_color(), alpha=0.15, linewidth=0)
        ax.set(xlabel="sentence boundary", ylabel="P(answer)", ylim=(0, 1))
        ax.legend(frameon=False)
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "AnchorMap":
        """Rebuild a map from `to_dict`, or from the JSON that `save` wrote."""
        arrays = {"curve", "low", "high", "effect", "effect_low", "effect_high", "log_e", "stay"}
        fields: dict[str, Any] = {k: np.array(v, dtype=float) if k in arrays else v for k, v in data.items()}
        fields |= {
            "sentences": tuple(data["sentences"]),
            "spans": tuple((a, b) for a, b in data["spans"]),
            "answers": tuple(data["answers"]),
            "status": tuple(data["status"]),
            "draws": np.array(data["draws"], dtype=np.int64),
            "alternatives": tuple(tuple(Alternative(**each) for each in group) for group in data["alternatives"]),
        }
        return cls(**fields)

    def save(self, path: str | Path) -> None:
        """Write the map as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


def anchors_view(
    anchors: AnchorMap,
    *,
    title: str,
    meta: Mapping[str, str] | None = None,
    tracks: Sequence[Track] = (),
    links: Sequence[Links] = (),
    categories: Sequence[str] | None = None,
) -> TraceView:
    """The map's curve, effects and alternatives as a view, with what other methods found beside them."""
    answer = anchors.answers[0]
    name = "P(no answer)" if answer == NO_ANSWER else f"P({answer if len(answer) <= 24 else answer[:23] + '…'})"
    level = f"{anchors.level:.0%}"
    curve = Track(
        name,
        f"Probability of the answer when the model writes on afresh from each point, with its {level} band.",
        _numbers(anchors.curve[:, 0]),
        _numbers(anchors.low[:, 0]),
        _numbers(anchors.high[:, 0]),
        undefined=_reasons(anchors.curve[:, 0], "no continuation was drawn here"),
        study="thought-anchors",
    )
    effect = Track(
        f"change of {name}",
        f"How much the sentence changed the probability of the answer, with its {level} interval.",
        _numbers(anchors.effect),
        _numbers(anchors.effect_low),
        _numbers(anchors.effect_high),
        undefined=_reasons(anchors.effect, "no continuation was drawn on one side of the sentence"),
        study="thought-anchors",
    )
    stays = Track(
        "stays",
        "How often a fresh continuation repeats the sentence token for token.",
        _numbers(anchors.stay),
        undefined=_reasons(anchors.stay, "no continuation was drawn here"),
        study="thought-anchors",
    )
    return TraceView(
        title=title,
        prompt=anchors.prompt,
        sentences=anchors.sentences,
        answer=answer,
        curve=curve,
        categories=None if categories is None else tuple(categories),
        tracks=(effect, stays, *tracks),
        links=tuple(links),
        alternatives=anchors.alternatives,
        marked=anchors.anchors,
        meta=dict(meta or {}),
    )


def _numbers(values: np.ndarray) -> Numbers:
    return tuple(float(x) if np.isfinite(x) else None for x in values)


def _reasons(values: np.ndarray, reason: str) -> tuple[str, ...] | None:
    missing = ~np.isfinite(values)
    return tuple(reason if gap else "" for gap in missing) if missing.any() else None
