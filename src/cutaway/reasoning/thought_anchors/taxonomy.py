r"""What each sentence of a chain of thought does, by a labeller that runs here (thought-anchors card, taxonomy).

The paper asks a paid model once a trace. Three local labellers, from transparent to general:

``rules``       weighted cues: wording, signs of arithmetic, place in the trace.
``linear``      the default: logistic regression on the same cues, words, word pairs, place and the neighbours'
                first words. 300 features, weights in ``taxonomy.json``, fitted on the published labels.
``zero-shot``   the model at hand: log-probability of a category's name after a short prompt, minus the same with
                no sentence in it.

Agreement with the published labels (2,885 sentences, 20 traces, 10 problems; problems held out one at a time):

=============  ========  ========  ===========================
labeller       accuracy  macro F1  kappa [95%, over problems]
=============  ========  ========  ===========================
linear         0.60      0.54      0.49 [0.42, 0.54]
rules          0.55      0.49      0.41 [0.37, 0.45]
majority       0.34      0.06      0
labels dealt   0.22      0.12      0.00 [-0.02, 0.02]
=============  ========  ========  ===========================

Linear beats the rules by 0.06 [0.01, 0.11] in accuracy (paired, over problems), in eight problems of ten.
``zero-shot`` depends on the model and was not measured; `measure_agreement` does it.

So a category is right six times in ten by the paper's own labels, which are one model's judgement made without a
second opinion. Confused most: fact retrieval and checking with computation. Use the categories to find one's way,
not to carry a claim. Rules and features were written while looking at the same 20 traces (mathematics, one model);
elsewhere expect less. ``unknown`` is given to text without a letter or digit.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from cutaway.errors import UsageError
from cutaway.reasoning.thought_anchors.cues import CUES
from cutaway.reasoning.view import CATEGORIES
from cutaway.stats import Interval, bootstrap

if TYPE_CHECKING:
    import pandas as pd

    from cutaway.model import Model


Labels = tuple[str, ...]
NAMED = CATEGORIES[:-1]
"""Categories that a labeller chooses between."""
FEATURES = 300
PROBLEMS = 4
"""Problems that a feature must occur in to be used, so that no problem's own words are."""
WEIGHTS = Path(__file__).with_name("taxonomy.json")

_PATTERNS = tuple((NAMED.index(category), weight, re.compile(cue, re.I)) for category, weight, cue in CUES)
_WORD = re.compile(r"[a-z']+|\d+|[=+\-*/^<>?!\\]|\$")
_SPOKEN = {
    "problem_setup": "restating",
    "plan_generation": "planning",
    "fact_retrieval": "recalling",
    "active_computation": "computing",
    "result_consolidation": "concluding",
    "uncertainty_management": "doubting",
    "self_checking": "checking",
    "final_answer_emission": "answering",
}


@dataclass(frozen=True)
class Linear:
    """A fitted linear labeller: one weight a feature and category."""

    features: tuple[str, ...]
    weights: Float[np.ndarray, "feature category"]
    bias: Float[np.ndarray, " category"]

    def label(self, sentences: Sequence[str]) -> Labels:
        """The category with the largest sum of weights, for each sentence of one trace."""
        place = {name: k for k, name in enumerate(self.features)}
        scores = [self.bias + self.weights[[place[x] for x in f if x in place]].sum(0) for f in features(sentences)]
        return _choose(sentences, np.array(scores).reshape(-1, len(NAMED)))

    def save(self, path: Path | str) -> None:
        """Write the weights, to two decimals, as JSON."""
        rows = {name: [round(float(w), 2) for w in row] for name, row in zip(self.features, self.weights, strict=True)}
        found = {"categories": list(NAMED), "bias": [round(float(b), 2) for b in self.bias], "weights": rows}
        Path(path).write_text(json.dumps(found, separators=(",", ":")).replace("],", "],\n") + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Linear":
        """Read what `save` wrote."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if tuple(found["categories"]) != NAMED:
            raise UsageError(f"{path}: categories {found['categories']} are not {list(NAMED)}; fit the weights again")
        return cls(tuple(found["weights"]), np.array(list(found["weights"].values())), np.array(found["bias"]))


@dataclass(frozen=True)
class Agreement:
    """How well labels agree with given ones, beside what no labeller at all would reach."""

    n: int
    accuracy: Interval
    macro_f1: float
    kappa: Interval
    """Both intervals resample whole groups (problems)."""
    confusion: Int[np.ndarray, "category category"]
    """[given, found], in the order of `categories`."""
    categories: Labels
    majority: float
    """Accuracy of always naming the most frequent given category."""
    dealt: float
    """Accuracy of the found labels after they are shuffled."""

    def __repr__(self) -> str:
        return (
            f"Agreement({self.n} sentences, kappa {self.kappa!r}, accuracy {self.accuracy!r}, macro F1 "
            f"{self.macro_f1:.2f}; majority {self.majority:.2f}, labels dealt {self.dealt:.2f})"
        )

    def to_frame(self) -> "pd.DataFrame":
        """Confusion: a row a given category, a column a found one."""
        import pandas as pd

        return pd.DataFrame(self.confusion, index=list(self.categories), columns=list(self.categories))


def label_sentences(sentences: Sequence[str], how: str = "linear", model: "Model | None" = None) -> Labels:
    """One of `CATEGORIES` for each sentence of one trace, in order; ``zero-shot`` needs a ``model``.

    >>> label_sentences(["Okay, so I have this problem.", "Let me try another way.", "Wait, is that right?"], "rules")
    ('problem_setup', 'plan_generation', 'uncertainty_management')
    """
    if how == "rules":
        return label_by_rules(sentences)
    if how == "linear":
        return _shipped().label(sentences)
    if how != "zero-shot":
        raise UsageError(f"how={how!r}: choose 'linear', 'rules' or 'zero-shot'")
    if model is None:
        raise UsageError("how='zero-shot' asks a model for its own reading; pass model=")
    return label_zero_shot(model, sentences)


def label_by_rules(sentences: Sequence[str]) -> Labels:
    """The category whose cues weigh most, for each sentence of one trace."""
    last, scores = len(sentences) - 1, np.zeros((len(sentences), len(NAMED)))
    kind = {category: k for k, category in enumerate(NAMED)}
    for i, sentence in enumerate(sentences):
        for k, weight in ((k, w) for k, w, cue in _PATTERNS if cue.search(_plain(sentence))):
            scores[i, k] += weight
        scores[i, kind["problem_setup"]] += 3.5 if i == 0 else 1.0 if i < 3 else 0.0
        scores[i, kind["final_answer_emission"]] += (0.8 if i > 0.93 * (last + 1) else -1.5) + (i == last)
        scores[i, kind["self_checking"]] += 0.2 if i > 0.7 * (last + 1) else -0.2
    scores[:, kind["active_computation"]] += 0.3
    scores[:, kind["fact_retrieval"]] += 0.25
    return _choose(sentences, scores)


def label_zero_shot(model: "Model", sentences: Sequence[str], batch_size: int = 8) -> Labels:
    """The category whose name gains most log-probability from the sentence, by ``model`` itself."""
    names = [tuple(model.encode(f" {_SPOKEN[category]}")) for category in NAMED]
    blank = _name_scores(model, [_question("")], names, 1)
    scores = _name_scores(model, [_question(_plain(sentence)) for sentence in sentences], names, batch_size)
    return _choose(sentences, scores - blank)


def fit_linear(traces: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], problems: Sequence[str]) -> Linear:
    """Logistic regression on the `FEATURES` most frequent features that occur in at least `PROBLEMS` problems."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows = [f for trace in traces for f in features(trace)]
    owner = [problem for trace, problem in zip(traces, problems, strict=True) for _ in trace]
    given = [label for trace in labels for label in trace]
    seen: dict[str, set[str]] = defaultdict(set)
    for f, problem in zip(rows, owner, strict=True):
        for name in f:
            seen[name].add(problem)
    counts = Counter(name for f in rows for name in f if len(seen[name]) >= min(PROBLEMS, len(set(problems))))
    chosen = sorted(counts, key=lambda name: (-counts[name], name))[:FEATURES]
    place = {name: k for k, name in enumerate(chosen)}
    at = np.array([(r, place[name]) for r, f in enumerate(rows) for name in f if name in place])
    matrix = csr_matrix((np.ones(len(at)), (at[:, 0], at[:, 1])), shape=(len(rows), len(chosen)))
    fitted = LogisticRegression(C=0.1, max_iter=150, tol=1e-3).fit(matrix, given)
    coef, intercept = fitted.coef_, fitted.intercept_
    if len(coef) == 1:  # two categories have one set of weights between them
        coef, intercept = np.concatenate([-coef, coef]), np.concatenate([-intercept, intercept])
    # A category that the data lack is never named.
    weights, bias = np.zeros((len(chosen), len(NAMED))), np.full(len(NAMED), -1e3)
    for k, category in enumerate(fitted.classes_):
        weights[:, NAMED.index(category)] = coef[k]
        bias[NAMED.index(category)] = intercept[k]
    return Linear(tuple(chosen), weights, bias)


def cross_label(
    traces: Sequence[Sequence[str]],
    labels: Sequence[Sequence[str]],
    problems: Sequence[str],
    held_out: Sequence[str] | None = None,
) -> list[Labels | None]:
    """Linear labels of every trace by weights that never saw its problem; None for problems not in ``held_out``."""
    found: list[Labels | None] = [None] * len(traces)
    for problem in dict.fromkeys(problems if held_out is None else held_out):
        rest = [i for i, owner in enumerate(problems) if owner != problem]
        fitted = fit_linear([traces[i] for i in rest], [labels[i] for i in rest], [problems[i] for i in rest])
        for i in set(range(len(traces))) - set(rest):
            found[i] = fitted.label(traces[i])
    return found


def measure_agreement(given: Sequence[str], found: Sequence[str], groups: Sequence[str], seed: int = 0) -> Agreement:
    """Compare labels of sentences; ``groups`` names each sentence's problem. UsageError when lists do not match."""
    if not given or not len(given) == len(found) == len(groups):
        raise UsageError(f"{len(given)} given and {len(found)} found labels in {len(groups)} groups; give one each")
    categories = tuple(category for category in CATEGORIES if category in {*given, *found})
    place = {category: k for k, category in enumerate(categories)}
    pairs = np.array([(place[a], place[b]) for a, b in zip(given, found, strict=True)])
    table = _confusion(pairs, len(categories))
    dealt = np.random.default_rng(seed).permutation(pairs[:, 1])
    owner = np.unique(groups, return_inverse=True)[1]

    def resampled(statistic: Any) -> Interval:
        return bootstrap(
            pairs, lambda x: statistic(_confusion(x, len(categories))), clusters=owner, method="percentile", n=500
        )

    return Agreement(
        n=len(pairs),
        accuracy=resampled(_accuracy),
        macro_f1=_macro_f1(table),
        kappa=resampled(_kappa),
        confusion=table,
        categories=categories,
        majority=float(table.sum(1).max() / table.sum()),
        dealt=float((pairs[:, 0] == dealt).mean()),
    )


def features(sentences: Sequence[str]) -> list[set[str]]:
    """What the linear labeller sees of each sentence of one trace."""
    plain = [_plain(sentence) for sentence in sentences]
    words = [["0" if w.isdigit() else w for w in _WORD.findall(text.lower())] for text in plain]
    n, found = len(plain), []
    for i, (text, said) in enumerate(zip(plain, words, strict=True)):
        f = {f"w:{w}" for w in said} | {f"b:{a} {b}" for a, b in pairwise(said)}
        f |= {f"cue:{k}" for k, (_, _, cue) in enumerate(_PATTERNS) if cue.search(text)}
        f |= {f"1:{w}" for w in said[:1]} | {f"2:{' '.join(said[:2])}", f"place:{int(10 * i / n)}"}
        f |= {f"before:{w}" for w in (words[i - 1][:1] if i else ["-"])}
        f |= {f"after:{w}" for w in (words[i + 1][:1] if i + 1 < n else ["-"])}
        f |= {f"start:{i}"} if i < 3 else set()
        f |= {f"end:{n - 1 - i}"} if i >= n - 3 else set()
        signs = sum(not w.isalpha() for w in said) / max(1, len(said))
        f |= {f"length:{min(6, len(said) // 6)}", f"signs:{int(4 * signs)}", f"numbers:{min(4, said.count('0'))}"}
        f |= {f"stop:{text[-1:]}"}
        f |= {"asked"} if i and plain[i - 1].endswith("?") else set()
        found.append(f)
    return found


@lru_cache
def _shipped() -> Linear:
    return Linear.load(WEIGHTS)


def _plain(sentence: str) -> str:
    return " ".join(sentence.split())


def _choose(sentences: Sequence[str], scores: Float[np.ndarray, "sentence category"]) -> Labels:
    best = scores.argmax(1)
    return tuple(
        NAMED[k] if re.search(r"[^\W_]", sentence) else "unknown" for sentence, k in zip(sentences, best, strict=True)
    )


def _question(sentence: str) -> str:
    listed = ", ".join(_SPOKEN.values())
    return (
        f"Each sentence of a worked solution does one of these: {listed}.\n"
        f'Sentence: "{sentence}"\nWhat the writer is doing here is'
    )


def _name_scores(
    model: "Model", questions: Sequence[str], names: Sequence[tuple[int, ...]], batch_size: int
) -> Float[np.ndarray, "question name"]:
    """Log-probability of each name after each question: one row a question and distinct beginning of a name."""
    import torch

    starts = list(dict.fromkeys(name[:-1] for name in names))
    scores = []
    for at in range(0, len(questions), batch_size):
        asked = [model.encode(question, special=True) for question in questions[at : at + batch_size]]
        rows = [[*ids, *start] for ids in asked for start in starts]
        with torch.inference_mode():
            logits = model.logits(model.batch(rows))
        for i, ids in enumerate(asked):
            found = []
            for name in names:
                steps = logits[i * len(starts) + starts.index(name[:-1]), len(ids) - 1 : len(ids) - 1 + len(name)]
                each = steps.float().log_softmax(-1)[torch.arange(len(name)), torch.tensor(name)]
                found.append(float(each.sum()))
            scores.append(found)
    return np.array(scores)


def _confusion(pairs: np.ndarray, size: int) -> Int[np.ndarray, "category category"]:
    pairs = pairs.astype(np.int64)
    return np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size * size).reshape(size, size)


def _accuracy(table: np.ndarray) -> float:
    return float(np.trace(table) / table.sum())


def _kappa(table: np.ndarray) -> float:
    chance = float(table.sum(1) @ table.sum(0)) / float(table.sum()) ** 2
    return (_accuracy(table) - chance) / (1 - chance) if chance < 1 else 0.0


def _macro_f1(table: np.ndarray) -> float:
    """Mean over the categories that occur on either side; one that is never right counts 0."""
    both = table.sum(1) + table.sum(0)
    return float(np.mean(2 * np.diag(table)[both > 0] / both[both > 0]))
