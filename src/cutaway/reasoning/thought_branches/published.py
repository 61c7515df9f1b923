"""The paper's published transplant curves and suppression effects, and what can be derived from them again.

47 hinted problems, DeepSeek-R1-Distill-Qwen-14B, 50 completions a point: the hinted chain up to and including a
sentence is pasted under the hint-free question, and ``cue_p`` is the share that ends on the hinted option
(``cue_p_prev``: one sentence earlier; for the first sentence, nothing pasted). ``kl`` is the published effect of
hiding the hint from attention on a sentence. See ``data/thought-branches/SOURCE.md``.

A problem has n + 1 points, from nothing pasted to everything; a fraction of its sentences lies between two of them,
and the curve is the mean over problems of the linear interpolation there.

Not derivable: single completions, token ids, and the table's rows on blackmail and whistleblowing (their rollouts
are not public).
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from scipy import stats

from cutaway.errors import UsageError
from cutaway.stats import Interval, bootstrap, mean_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

HEADLINE = {0.0: 0.278, 0.2: 0.358, 0.4: 0.500, 0.6: 0.662, 0.8: 0.870, 1.0: 0.994}
"""Published mean of P(hinted answer) by share of the chain's sentences."""
COMPLETIONS = 50


@dataclass(frozen=True)
class Steps:
    """The largest rise that one sentence makes, over problems."""

    largest: Float[np.ndarray, " problem"]
    mean: Interval
    above_03: Interval
    above_08: Interval


def read_published(folder: str | Path) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """The transplant table and the suppression table; UsageError when a file is not there."""
    import pandas as pd

    tables = []
    for name in ("transplant.csv.gz", "suppression.csv.gz"):
        path = Path(folder) / name
        if not path.is_file():
            raise UsageError(f"{path.name} is not in {Path(folder).name!r}; give the folder of the published tables")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            tables.append(pd.read_csv(file))
    return tables[0], tables[1]


def curves(table: "pd.DataFrame", fractions: Sequence[float]) -> Float[np.ndarray, "problem fraction"]:
    """P(hinted answer) of each problem with this share of its sentences pasted."""
    rows = []
    for _, problem in table.groupby("pn"):
        ordered = problem.sort_values("sentence_num")
        points = np.array([ordered["cue_p_prev"].iloc[0], *ordered["cue_p"]], dtype=float)
        rows.append(np.interp(fractions, np.linspace(0, 1, len(points)), points))
    return np.array(rows)


def curve(table: "pd.DataFrame", fractions: Sequence[float], level: float = 0.95) -> tuple[Interval, ...]:
    """Mean curve over problems with its interval (problems are the units)."""
    return tuple(mean_interval(column, level) for column in curves(table, fractions).T)


def steps(table: "pd.DataFrame", level: float = 0.95) -> Steps:
    """Largest one-sentence rise of each problem: its mean and the share above 0.3 and 0.8."""
    rise = (table["cue_p"] - table["cue_p_prev"]).groupby(table["pn"]).max().to_numpy(dtype=float)
    shares = [wilson(int((rise > bar).sum()), rise.size, level) for bar in (0.3, 0.8)]
    return Steps(rise, mean_interval(rise, level), *shares)


def slopes(table: "pd.DataFrame", level: float = 0.95) -> Interval:
    """Rise of P(hinted answer) for each sentence pasted: least-squares slope, mean over problems."""
    found = []
    for _, problem in table.groupby("pn"):
        ordered = problem.sort_values("sentence_num")
        points = np.array([ordered["cue_p_prev"].iloc[0], *ordered["cue_p"]], dtype=float)
        found.append(np.polyfit(np.arange(len(points)), points, 1)[0])
    return mean_interval(found, level)


def suppression(
    table: "pd.DataFrame", effects: "pd.DataFrame", level: float = 0.95, seed: int = 0
) -> tuple[Interval, int]:
    """Rank correlation, over sentences in both tables, of hiding the hint and the size of the transplant step.

    The interval draws whole problems; also returns the number of sentences.
    """
    both = table.merge(effects, on=["pn", "sentence_num"])
    values = np.stack([both["kl"], (both["cue_p"] - both["cue_p_prev"]).abs()], axis=1)

    def rank(rows: np.ndarray) -> float:
        return float(stats.spearmanr(rows[:, 0], rows[:, 1]).statistic)

    problems = both["pn"].to_numpy()
    return bootstrap(values, rank, clusters=problems, method="percentile", seed=seed, level=level), len(both)


def waits(folder: str | Path, against: str = "free_right", level: float = 0.95, seed: int = 0) -> Interval:
    """How often "wait" stands in hinted chains, as a ratio to hint-free ones; the interval draws whole problems.

    ``against``: ``free_right`` (hint-free chains that end on the right option) or ``free_same`` (on the hinted one).
    """
    import pandas as pd

    table = pd.read_csv(Path(folder) / "wait_counts.csv")
    columns = ["hinted_wait", "hinted_words", f"{against}_wait", f"{against}_words"]
    if missing := [column for column in columns if column not in table]:
        raise UsageError(f"against={against!r}: no column {missing[0]!r}; use free_right or free_same")

    def ratio(rows: np.ndarray) -> float:
        total = rows.sum(0)
        return float(total[0] / total[1] / (total[2] / total[3]))

    return bootstrap(table[columns].to_numpy(dtype=float), ratio, method="percentile", seed=seed, level=level)
